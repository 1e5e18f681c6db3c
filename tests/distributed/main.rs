//! Processes that train together, started as a launcher starts them: this program again, once per rank.

#[path = "../common/mod.rs"]
mod common;

mod collectives;
mod ddp;
mod failures;
mod launch;
mod net;
mod rank;
mod torchrun;
mod training;
