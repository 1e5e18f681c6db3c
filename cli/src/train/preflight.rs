//! Before the first step: what will train, where, with how much memory, and whether it can.

use std::fmt;

use anyhow::{bail, ensure, Result};
use ln_tuning::device::cuda_status;
use ln_tuning::{LnTuningModel, Optimizer};
use serde::Serialize;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::batches::Job;
use super::memory;
use super::settings::Settings;
use super::task::{backward, Load, Task};

/// Lines about what trains, on which data and where.
pub fn describe<T: Task>(
    task: &T,
    vs: &VarStore,
    tuned: &LnTuningModel,
    settings: &Settings,
) -> Result<Vec<String>> {
    let mut lines = vec![tuned.trainable_parameters().to_string()];
    let status = tuned.layer_status();
    let names: Vec<&str> = status.iter().take(3).map(|layer| layer.name.as_str()).collect();
    let more = if status.len() > names.len() { ", …" } else { "" };
    lines.push(format!("{} modules train: {}{more}", status.len(), names.join(", ")));
    lines.extend(task.describe());
    lines.push(kernels(vs, settings)?);
    if vs.device() == Device::Cpu && settings.device == "auto" {
        lines.push(cuda_status().to_string());
    }
    Ok(lines)
}

fn kernels(vs: &VarStore, settings: &Settings) -> Result<String> {
    let kind = vs.trainable_variables().first().map_or(Kind::Float, Tensor::kind);
    let kinds: Vec<Kind> = vs.variables().values().map(Tensor::kind).collect();
    let wide = kinds.iter().filter(|k| **k == Kind::Float).count();
    let kind = if wide * 2 > kinds.len() { Kind::Float } else { kind };
    let recompute = match settings.recompute()? {
        Some(recompute) => format!(", checkpointed: {recompute:?}"),
        None => String::new(),
    };
    Ok(format!(
        "on {:?}, weights in {kind:?}, {} threads; libtorch's fused norms and attention{recompute}",
        vs.device(),
        tch::get_num_threads()
    ))
}

/// The largest batch, as it was measured.
#[derive(Serialize)]
pub struct Largest {
    pub size: u64,
    pub unit: &'static str,
    pub loss: f64,
    pub weights_bytes: u64,
    /// Masters, gradients and two moments.
    pub trained_bytes: u64,
    /// The most that the process has had in memory, on a CPU.
    pub process_peak_bytes: Option<u64>,
    pub gpu_bytes: Option<u64>,
    /// The tensors that train, each with a gradient.
    #[serde(skip)]
    pub tensors: Vec<(String, Vec<i64>)>,
}

/// Runs the largest batch forwards and backwards; nothing is changed by it.
pub fn measure<T: Task>(
    task: &T,
    vs: &VarStore,
    tuned: &LnTuningModel,
    optimizer: &mut Optimizer,
    settings: &Settings,
) -> Result<Largest> {
    let rows = task.largest(settings.batch_size);
    ensure!(!rows.is_empty(), "there is nothing to train on: the data is empty");
    let batch = task.loader().load(&Job { eval: false, rows })?;
    tch::manual_seed(0);
    optimizer.zero_grad()?;
    let recompute = settings.recompute()?;
    let loss = backward(task, &batch, batch.targets.max(1), recompute.as_ref(), optimizer)?;
    let loss = loss.f_double_value(&[])?;
    ensure!(loss.is_finite(), "the loss of the largest batch is {loss}: {}", batch.sources);
    let (mut idle, mut tensors) = (Vec::new(), Vec::new());
    for (name, gradient) in optimizer.gradients()? {
        let Some(gradient) = gradient else {
            idle.push(format!("{name} (none)"));
            continue;
        };
        let norm = gradient.f_norm()?.f_double_value(&[])?;
        if norm == 0. || !norm.is_finite() {
            idle.push(format!("{name} ({norm})"));
        }
        tensors.push((name, gradient.size()));
    }
    if !idle.is_empty() {
        bail!(
            "{} selected tensors have no gradient in the largest batch, or one that is 0 or not finite: {}. Leave \
             them out with 'adapter.exclude_modules'",
            idle.len(),
            idle.join(", ")
        );
    }
    optimizer.zero_grad()?;
    let mut weights_bytes = 0;
    for tensor in vs.variables().values() {
        weights_bytes += tensor.numel() as u64 * tensor.f_kind()?.elt_size_in_bytes() as u64;
    }
    let gpu = matches!(vs.device(), Device::Cuda(_));
    Ok(Largest {
        size: batch.size,
        unit: task.unit(),
        loss,
        weights_bytes,
        trained_bytes: tuned.trainable_parameters().trainable * 16,
        process_peak_bytes: if gpu { None } else { memory::peak() },
        gpu_bytes: if gpu { memory::of_driver().map(|megabytes| megabytes << 20) } else { None },
        tensors,
    })
}

impl fmt::Display for Largest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Largest { size, unit, loss, tensors, .. } = self;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        writeln!(
            f,
            "the largest batch: {size} {unit}, loss {loss:.4}, {} gradients, none of them 0",
            tensors.len()
        )?;
        write!(
            f,
            "memory: weights {:.1} MB, what trains and its optimiser {:.1} MB",
            megabytes(self.weights_bytes),
            megabytes(self.trained_bytes)
        )?;
        if let Some(bytes) = self.gpu_bytes {
            write!(f, "; {:.0} MB of the GPU in use after the largest batch", megabytes(bytes))?;
        }
        if let Some(bytes) = self.process_peak_bytes {
            write!(
                f,
                "; the process took at most {:.0} MB, measured with the largest batch",
                megabytes(bytes)
            )?;
        }
        Ok(())
    }
}
