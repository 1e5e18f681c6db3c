//! Before the first step: what will train, where, with how much memory, and whether it can.

use anyhow::{bail, ensure, Context, Result};
use ln_tuning::device::{cuda_status, memory_info};
use ln_tuning::pretrained::BaseBytes;
use ln_tuning::{LnTuningModel, Optimizer};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::batches::Job;
use super::memory;
use super::report::Report;
use super::settings::Settings;
use super::task::{backward, Load, Task};

/// Reports what trains, on which data and where.
pub fn describe<T: Task>(
    task: &T,
    vs: &VarStore,
    tuned: &LnTuningModel,
    settings: &Settings,
    report: &mut Report,
) -> Result<()> {
    let parameters = tuned.trainable_parameters();
    report.set("trainable", json!(parameters.trainable));
    report.set("total", json!(parameters.total));
    report.set("percent", json!(parameters.percent()));
    report.line(parameters);
    let status = tuned.layer_status();
    let names: Vec<&str> = status.iter().take(3).map(|layer| layer.name.as_str()).collect();
    let more = if status.len() > names.len() { ", …" } else { "" };
    report.line(format!("{} modules train: {}{more}", status.len(), names.join(", ")));
    let unused: Vec<_> = tuned.model_status().unused.into_values().flatten().collect();
    if let Some(first) = unused.first() {
        let (count, paths) = (unused.len(), unused.iter().map(|module| &module.path));
        report.set("unused", json!(paths.collect::<Vec<_>>()));
        report.line(format!(
            "{count} modules are left out, since they get no gradient, such as {}: {}",
            first.path, first.reason
        ));
    }
    task.describe().into_iter().for_each(|line| report.line(line));
    report.line(kernels(vs, settings)?);
    base(vs, settings, report)?;
    if vs.device() == Device::Cpu && settings.device == "auto" {
        report.line(cuda_status());
    }
    Ok(())
}

fn kernels(vs: &VarStore, settings: &Settings) -> Result<String> {
    let kind = vs.trainable_variables().first().map_or(Kind::Float, Tensor::kind);
    let kinds: Vec<Kind> = vs.variables().values().map(Tensor::kind).collect();
    let wide = kinds.iter().filter(|k| **k == Kind::Float).count();
    let kind = if wide * 2 > kinds.len() { Kind::Float } else { kind };
    let recompute = match settings.recompute()? {
        Some(recompute) if !settings.keeps_activations() => {
            format!(", checkpointed: {recompute:?}")
        }
        _ => String::new(),
    };
    Ok(format!(
        "on {:?}, weights in {kind:?}, {} threads; libtorch's fused norms and attention{recompute}",
        vs.device(),
        tch::get_num_threads()
    ))
}

/// Reports the way in which the base is kept, and its bytes.
fn base(vs: &VarStore, settings: &Settings, report: &mut Report) -> Result<()> {
    let base = settings.base;
    let bytes = BaseBytes::of(vs)?;
    report.set("base", memory::base(base, bytes));
    let mut line = memory::base_in_words(base, bytes);
    if settings.checkpointing.is_none() && base.is_streamed() {
        line += "; blocks are checkpointed, since their weights are fetched again for the backward pass";
    }
    if base.is_streamed() && settings.accumulation > 1 {
        line += "; the batches of a step go through each block together";
    }
    report.line(line);
    Ok(())
}

/// Runs the largest batch forwards and backwards, which changes nothing, and reports what that takes. Gives the names
/// and shapes of the tensors that train.
pub fn measure<T: Task>(
    task: &T,
    vs: &VarStore,
    tuned: &LnTuningModel,
    optimizer: &mut Optimizer,
    settings: &Settings,
    report: &mut Report,
) -> Result<Vec<(String, Vec<i64>)>> {
    let rows = task.largest(settings.batch_size).into_iter().filter(|rows| !rows.is_empty());
    let loader = task.loader();
    let batches = rows.map(|rows| loader.load(&Job { eval: false, rows }));
    let batches = batches.collect::<Result<Vec<_>>>()?;
    let batch = batches.first().context("there is nothing to train on: the data is empty")?;
    let targets: i64 = batches.iter().map(|batch| batch.targets).sum();
    tch::manual_seed(0);
    optimizer.zero_grad()?;
    let recompute = settings.recompute()?;
    let loss = backward(task, &batches, targets.max(1), recompute.as_ref(), optimizer)?;
    let loss = loss.f_double_value(&[])?;
    let sources = || batches.iter().map(|batch| batch.sources.as_str()).collect::<Vec<_>>();
    ensure!(loss.is_finite(), "the loss of the largest batch is {loss}: {}", sources().join(", "));
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
            "{} selected tensors have no gradient in the largest batch, or one that is 0 or not finite: {}. {}",
            idle.len(),
            idle.join(", "),
            task.idle().unwrap_or("Leave them out with 'adapter.exclude_modules'")
        );
    }
    optimizer.zero_grad()?;
    let (size, unit, count) = (batch.size, task.unit(), tensors.len());
    report.line(format!(
        "the largest batch: {size} {unit}, loss {loss:.4}, {count} gradients, none of them 0"
    ));
    let mut weights = 0;
    for tensor in vs.variables().values() {
        weights += tensor.numel() as u64 * tensor.f_kind()?.elt_size_in_bytes() as u64;
    }
    // Masters, gradients and two moments, of each adapter.
    let runs = tuned.adapters().len();
    let trained = tuned.trainable_parameters().trainable * 16 * runs as u64;
    let (peak, words) = match vs.device() {
        Device::Cpu => (memory::peak(), "at most in the process"),
        device => (memory::used(device), "of the GPU by all processes"),
    };
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let mut line = format!(
        "memory: weights {:.1} MB, what trains and its optimiser {:.1} MB",
        megabytes(weights),
        megabytes(trained)
    );
    if runs > 1 {
        line += &format!(" for {runs} runs");
    }
    if let Some(peak) = peak {
        line += &format!("; {:.0} MB {words}, measured with the largest batch", megabytes(peak));
    }
    if let (Device::Cuda(_), Ok(memory)) = (vs.device(), memory_info(vs.device())) {
        line += &format!("; {memory}");
    }
    report.line(line);
    report.set("largest_batch", json!({"size": size, "unit": unit, "loss": loss}));
    let memory = json!({"weights": weights, "trained": trained, "measured": peak});
    report.set("memory_bytes", memory);
    Ok(tensors)
}
