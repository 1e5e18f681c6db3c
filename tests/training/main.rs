//! Training: optimisers, schedules, losses, recomputation and new heads.
//!
//! libtorch's generator of random numbers is one for the process, and the tests run beside each other: no test here
//! draws from it but those that take `random::alone`.

#[path = "../common/mod.rs"]
mod common;
#[path = "../nets/mod.rs"]
mod nets;

mod accumulation;
mod checkpointing;
mod gradients;
mod graphed;
mod half_precision;
mod loss;
mod loss_scale;
mod mixed;
mod new_heads;
mod optimizer;
mod optimizer_state;
mod orders;
mod parameter_groups;
mod random;
mod recompute;
mod schedule;
mod stale_graphs;
