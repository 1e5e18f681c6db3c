//! The counting runtime: built, run, and asked for its counts.
#![allow(dead_code, unused_imports)] // each test binary uses a part of it

mod counts;
mod gpu;
mod library;

pub use counts::{
    counts, fail_after, fail_launches, limit_memory, only_device, reset, Counts, Memory,
};
pub use gpu::{in_child, Gpu};
pub use library::headers_of_cuda;
