//! Several runs on one base, at once: those of a sweep, or tasks with data of their own. Each trains an adapter of its
//! own, and is, in a folder of its own, what it would be alone.

mod course;
pub mod grid;
mod groups;
mod halving;
mod members;
mod picture;
mod record;
mod start;
pub mod tasks;
mod together;
mod way;

pub use members::{alike, Purpose, Several, Weights, Work};
pub use start::start;
