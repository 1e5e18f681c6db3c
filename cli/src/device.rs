//! Devices and kinds by the names that they have on the command line and in settings.

use anyhow::{bail, ensure, Result};
use clap::ValueEnum;
use ln_tuning::device::{best_device, cuda_status, load_cuda, memory_info};
use ln_tuning::gguf::GgufFile;
use ln_tuning::pretrained::ModelFiles;
use serde::Deserialize;
use tch::{Device, Kind};

/// The place of a process among those of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// From 0.
    pub rank: usize,
    pub count: usize,
}

impl Local {
    pub const ALONE: Local = Local { rank: 0, count: 1 };
}

/// `auto`, `cpu`, `cuda` or `cuda:N`.
pub fn named(name: &str) -> Result<Device> {
    of_rank(name, Local::ALONE)
}

/// The same for one of several processes: each has a GPU of its own, unless one is named by its number.
pub fn of_rank(name: &str, local: Local) -> Result<Device> {
    let own = |name: &str| -> Result<Device> {
        load_cuda()?;
        let count = tch::Cuda::device_count().max(0) as usize;
        ensure!(count > 0, "'device' is '{name}': {}", cuda_status());
        let visible = visible();
        ensure!(
            local.rank < count,
            "there are {} processes on this machine, and each needs a GPU of its own, but this one sees {count}{visible}: \
             start as many processes as there are GPUs, or, where each sees only its own, set 'device' to cuda:0",
            local.count
        );
        Ok(Device::Cuda(local.rank))
    };
    let cuda = |index: usize| -> Result<Device> {
        load_cuda()?;
        let count = tch::Cuda::device_count().max(0) as usize;
        ensure!(count > 0, "'device' is '{name}': {}", cuda_status());
        let last = count - 1;
        let there = if last == 0 { "cuda:0".into() } else { format!("cuda:0 to cuda:{last}") };
        let visible = visible();
        ensure!(index < count, "'device' is '{name}', expected cpu or {there}{visible}");
        Ok(Device::Cuda(index))
    };
    match name {
        "auto" => match best_device() {
            Device::Cuda(_) => own(name),
            other => Ok(other),
        },
        "cpu" => Ok(Device::Cpu),
        "cuda" => own(name),
        other => match other.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(index)) => cuda(index),
            _ => bail!("'device' is '{other}', expected auto, cpu, cuda or cuda:N"),
        },
    }
}

/// The words about the GPUs that are hidden from this process.
fn visible() -> String {
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(visible) => format!(" (CUDA_VISIBLE_DEVICES is '{visible}')"),
        Err(_) => String::new(),
    }
}

/// The kind of a model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// bf16 on a GPU, and the kind of the files on a CPU
    #[default]
    Auto,
    #[value(alias = "float32")]
    #[serde(alias = "float32")]
    F32,
    #[value(alias = "bfloat16")]
    #[serde(alias = "bfloat16")]
    Bf16,
    #[value(alias = "float16")]
    #[serde(alias = "float16")]
    F16,
}

impl ModelKind {
    /// `None`: as on disk.
    pub fn on(self, device: Device) -> Option<Kind> {
        match self {
            // Half the memory and several times the speed on a GPU.
            ModelKind::Auto => (device != Device::Cpu).then_some(Kind::BFloat16),
            ModelKind::F32 => Some(Kind::Float),
            ModelKind::Bf16 => Some(Kind::BFloat16),
            ModelKind::F16 => Some(Kind::Half),
        }
    }

    /// That in which a model answers. The blocks of a GGUF file hold more than bf16, and what bf16 drops can change the
    /// answer of a small model: on a GPU, they become f32 if that takes at most half of the free memory.
    pub fn answering(self, device: Device, files: &ModelFiles) -> Option<Kind> {
        let in_blocks = |file: &GgufFile| {
            file.tensors().iter().any(|tensor| tensor.block_type.kind().is_none())
        };
        let asked = self != ModelKind::Auto || device == Device::Cpu;
        if asked || !files.gguf().is_some_and(in_blocks) {
            return self.on(device);
        }
        let variables = files.variables();
        let weights =
            variables.iter().map(|variable| variable.shape.iter().product::<i64>() as u64);
        let bytes = 4 * weights.sum::<u64>();
        if memory_info(device).is_ok_and(|memory| bytes <= memory.free / 2) {
            return Some(Kind::Float);
        }
        self.on(device)
    }
}
