//! The project itself: the package, and what a newcomer runs.

#[path = "../common/mod.rs"]
mod common;
#[path = "../nets/mod.rs"]
mod nets;

mod numbers;
mod packaging;
mod quickstart;
mod structure;
