//! `gpu_check`: computes what is compared with PEFT.

use anyhow::Result;
use clap::Parser;
use ln_tuning_gpu::{check, fused_step, generate, graph};

/// Computes what is compared with PEFT on the same device.
#[derive(Debug, Parser)]
#[command(name = "gpu_check")]
enum Command {
    Check(check::Args),
    Fused(fused_step::Args),
    Generate(generate::Args),
    Graph(graph::Args),
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Check(args) => check::run(&args),
        Command::Fused(args) => fused_step::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Graph(args) => graph::run(&args),
    }
}
