//! The project itself: the package, and what a newcomer runs.

#[path = "../common/mod.rs"]
mod common;
#[path = "../nets/mod.rs"]
mod nets;

#[cfg(feature = "distributed")]
mod c10d;
mod numbers;
mod packaging;
mod patched;
mod quickstart;
mod structure;
