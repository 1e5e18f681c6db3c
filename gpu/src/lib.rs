//! Our side of the checks on a GPU: what `gpu/theirs.py` computes with PEFT is computed here with this crate.

pub mod attention;
pub mod check;
#[path = "../../tests/cuda/fused_checks.rs"]
pub mod fused_checks;
pub mod fused_step;
pub mod generate;
pub mod graph;
pub mod model;
mod step_profile;

use anyhow::{ensure, Result};
use clap::ValueEnum;
use ln_tuning::device::{best_device, cuda_status};
use tch::{Device, Kind};

/// The device, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum On {
    Cpu,
    Cuda,
}

impl On {
    pub fn name(self) -> &'static str {
        if self == On::Cpu {
            "cpu"
        } else {
            "cuda"
        }
    }

    pub fn device(self) -> Result<Device> {
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
pub enum Dtype {
    Float32,
    Bfloat16,
    Float16,
}

impl Dtype {
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Float32 => "float32",
            Dtype::Bfloat16 => "bfloat16",
            Dtype::Float16 => "float16",
        }
    }

    pub fn kind(self) -> Kind {
        match self {
            Dtype::Float32 => Kind::Float,
            Dtype::Bfloat16 => Kind::BFloat16,
            Dtype::Float16 => Kind::Half,
        }
    }
}
