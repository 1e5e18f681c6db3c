//! Before the first step: what will train, where, with how much memory, and whether it can.

use anyhow::{bail, ensure, Context, Result};
use ln_tuning::device::cuda_status;
use ln_tuning::{LnTuningModel, Optimizer};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::memory::of_driver;
use super::settings::Settings;
use super::task::{Batch, Load, Task};

/// Prints, and runs the largest batch forwards and backwards; nothing is changed by it.
pub fn check<T: Task>(
    task: &T,
    vs: &VarStore,
    tuned: &LnTuningModel,
    optimizer: &mut Optimizer,
    settings: &Settings,
) -> Result<()> {
    let device = vs.device();
    println!("{}", tuned.trainable_parameters());
    let status = tuned.layer_status();
    let names: Vec<&str> = status.iter().take(3).map(|layer| layer.name.as_str()).collect();
    let more = if status.len() > names.len() { ", …" } else { "" };
    println!("{} modules train: {}{more}", status.len(), names.join(", "));
    for line in task.describe() {
        println!("{line}");
    }
    println!("{}", kernels(vs, device, settings)?);
    if device == Device::Cpu && settings.device == "auto" {
        println!("{}", cuda_status());
    }
    let job = task.largest().context("there is nothing to train on: the data is empty")?;
    let batch = task.loader().load(&job)?;
    tch::manual_seed(0);
    optimizer.zero_grad()?;
    let loss = task.backward(&batch, batch.targets().max(1), optimizer)?.double_value(&[]);
    ensure!(loss.is_finite(), "the loss of the largest batch is {loss}: {}", batch.sources());
    let found = optimizer.gradients()?;
    let idle = |(name, gradient): &(String, Option<Tensor>)| match gradient {
        None => Some(format!("{name} (none)")),
        Some(gradient) => {
            let norm = gradient.norm().double_value(&[]);
            (norm == 0. || !norm.is_finite()).then(|| format!("{name} ({norm})"))
        }
    };
    let idle: Vec<String> = found.iter().filter_map(idle).collect();
    if !idle.is_empty() {
        bail!(
            "{} selected tensors have no gradient in the largest batch, or one that is 0 or not finite: {}. Leave them out with \
             'adapter.exclude_modules'",
            idle.len(),
            idle.join(", ")
        );
    }
    optimizer.zero_grad()?;
    println!(
        "the largest batch: {} {}, loss {loss:.4}, {} gradients, none of them 0",
        batch.size(),
        task.unit(),
        found.len()
    );
    println!("{}", memory(vs, tuned)?);
    Ok(())
}

fn kernels(vs: &VarStore, device: Device, settings: &Settings) -> Result<String> {
    let kind = vs.trainable_variables().first().map_or(Kind::Float, Tensor::kind);
    let kinds: Vec<Kind> = vs.variables().values().map(Tensor::kind).collect();
    let wide = kinds.iter().filter(|k| **k == Kind::Float).count();
    let kind = if wide * 2 > kinds.len() { Kind::Float } else { kind };
    let recompute = match settings.recompute()? {
        Some(recompute) => format!(", checkpointed: {recompute:?}"),
        None => String::new(),
    };
    Ok(format!(
        "on {device:?}, weights in {kind:?}, {} threads; libtorch's fused norms and attention{recompute}",
        tch::get_num_threads()
    ))
}

/// What is known, and what the largest batch has shown.
fn memory(vs: &VarStore, tuned: &LnTuningModel) -> Result<String> {
    let mut weights = 0_u64;
    for tensor in vs.variables().values() {
        weights += tensor.numel() as u64 * tensor.f_kind()?.elt_size_in_bytes() as u64;
    }
    // Masters, gradients and two moments.
    let own = tuned.trainable_parameters().trainable * 16;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let mut text = format!(
        "memory: weights {:.1} MB, what trains and its optimiser {:.1} MB",
        megabytes(weights),
        megabytes(own)
    );
    if let Device::Cuda(_) = vs.device() {
        if let Some(taken) = of_driver() {
            text += &format!("; {taken} MB of the GPU are taken behind the largest batch");
        }
    } else if let Some(peak) = peak() {
        text += &format!(
            "; the process took at most {:.0} MB so far, the largest batch included",
            megabytes(peak)
        );
    }
    Ok(text)
}

/// The most that the process has had in memory, in bytes.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
