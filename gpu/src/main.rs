//! Our side of the checks on a GPU: what `gpu/theirs.py` computes with PEFT is computed here with this crate.

mod attention;
mod check;
mod generate;
mod model;

use anyhow::{ensure, Result};
use clap::{Parser, ValueEnum};
use ln_tuning::device::{best_device, cuda_status};
use tch::{Device, Kind};

/// Computes what is compared with PEFT on the same device.
#[derive(Debug, Parser)]
#[command(name = "gpu_check")]
enum Command {
    Check(check::Args),
    Generate(generate::Args),
}

/// The device, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum On {
    Cpu,
    Cuda,
}

impl On {
    fn name(self) -> &'static str {
        if self == On::Cpu {
            "cpu"
        } else {
            "cuda"
        }
    }

    fn device(self) -> Result<Device> {
        if self == On::Cpu {
            return Ok(Device::Cpu);
        }
        let device = best_device();
        ensure!(device.is_cuda(), "{}", cuda_status());
        Ok(device)
    }
}

/// The kind of the weights, by the name that torch gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    Float32,
    Bfloat16,
    Float16,
}

impl Dtype {
    fn name(self) -> &'static str {
        match self {
            Dtype::Float32 => "float32",
            Dtype::Bfloat16 => "bfloat16",
            Dtype::Float16 => "float16",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Dtype::Float32 => Kind::Float,
            Dtype::Bfloat16 => Kind::BFloat16,
            Dtype::Float16 => Kind::Half,
        }
    }
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Check(args) => check::run(&args),
        Command::Generate(args) => generate::run(&args),
    }
}
