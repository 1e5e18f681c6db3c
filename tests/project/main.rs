//! The project itself: what a newcomer runs.

#[path = "../common/mod.rs"]
mod common;
#[path = "../nets/mod.rs"]
mod nets;

mod quickstart;
