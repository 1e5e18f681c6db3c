//! Processes that train together, started as a launcher starts them: this program again, once per rank.

#[path = "../common/mod.rs"]
mod common;
#[path = "../nets/mod.rs"]
mod nets;

mod collectives;
mod ddp;
mod failures;
mod launch;
mod net;
mod rank;
mod several;
mod torchrun;
mod training;
