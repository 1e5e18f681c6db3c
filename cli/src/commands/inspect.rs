//! The contents of an adapter directory, and how far it moved from its base.

use std::path::{Path, PathBuf};

use anyhow::{ensure, Result};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{atomic, AdapterDiff, LnTuningModel, SavedAdapter};
use serde_json::{json, Value};
use tch::{Kind, Tensor};

use super::key_mapping::KeyMapping;
use super::train::sample;
use crate::train::ranks::Ranks;
use crate::train::run_settings::RunSettings;
use crate::train::settings::TaskName;
use crate::train::shift::{Asked, Shift};
use crate::train::yaml::Given;
use crate::train::{detect, memory};
use crate::{classifier, language};

/// Helps where the evaluation lacks memory.
const LESS_MEMORY: &str =
    "Use --set with a smaller 'batch_size' or 'data.max_length', or with 'kind' bf16";

/// Show the contents of an adapter directory, and how far its norms moved
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  ln-tuning inspect tuned/adapter --base Llama-3.2-1B --heatmap moved.svg\n  ln-tuning inspect tuned/adapter --base Llama-3.2-1B --data eval.jsonl --loss-curve loss.svg"
)]
pub struct Args {
    /// The directory that `save_pretrained` of PEFT or of this crate wrote
    adapter: PathBuf,
    /// The base model: a directory with config.json and safetensors, or a GGUF file
    #[arg(long)]
    base: Option<PathBuf>,
    /// Draw how far each norm moved: depth across, kinds of norms down (needs --base)
    #[arg(long, requires = "base", value_name = "OUT.svg")]
    heatmap: Option<PathBuf>,
    /// Show the loss on these data over the scale of what was learned, from 0 (the base) to 1.5 (needs --base)
    #[arg(long, requires = "base", value_name = "DATA")]
    data: Option<PathBuf>,
    /// With --data: a setting as for `train`, such as data.label=stars; may be given many times
    #[arg(long = "set", requires = "data", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// With --data: draw the loss over the scale
    #[arg(long, requires = "data", value_name = "OUT.svg")]
    loss_curve: Option<PathBuf>,
    #[command(flatten)]
    key_mapping: KeyMapping,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let saved = SavedAdapter::open(&args.adapter)?.key_mapping(args.key_mapping.rules.clone())?;
    let diff = args.base.as_ref().map(|base| compare(&saved, args, base)).transpose()?;
    if let (Some(path), Some(diff)) = (&args.heatmap, &diff) {
        atomic::write(&[(path.clone(), diff.heat_map()?.into_bytes())])?;
    }
    let shift = match (&args.base, &args.data) {
        (Some(base), Some(data)) => Some(shift(&saved, args, base, data)?),
        _ => None,
    };
    if let (Some(path), Some(shift)) = (&args.loss_curve, &shift) {
        atomic::write(&[(path.clone(), shift.picture()?)])?;
    }
    if args.json {
        let tensors: Vec<Value> = saved.tensors.iter().map(|(key, t)| tensor(key, t)).collect();
        let config: Value = serde_json::from_str(&saved.config.to_json())?;
        let report = json!({
            "config": config,
            "tensors": tensors,
            "parameters": saved.tensors.iter().map(|(_, t)| t.numel()).sum::<usize>(),
            "bytes": saved.tensors.iter().map(|(_, t)| bytes(t)).sum::<usize>(),
            "moved": diff.as_ref().map(moved),
            "shift": shift.as_ref().map(Shift::to_json),
        });
        println!("{report:#}");
        return Ok(());
    }
    print(&saved, diff.as_ref());
    if let Some(shift) = &shift {
        print!("\n{}", shift.table());
    }
    Ok(())
}

/// Attaches the adapter to the base without model code. Weights are mapped, so that only those it replaces are read.
fn compare(saved: &SavedAdapter, args: &Args, base: &PathBuf) -> Result<AdapterDiff> {
    let files = ModelFiles::open(base)?;
    let vs = saved.var_store(files)?;
    let load = args.key_mapping.load_options();
    let (model, _) = LnTuningModel::from_pretrained_with(&vs, &args.adapter, "default", &load)?;
    let mut diff = model.diff("default", None)?;
    diff.adapter = args.adapter.display().to_string();
    Ok(diff)
}

/// The loss over the scale of what was learned. Rows come in the order of the file.
fn shift(saved: &SavedAdapter, args: &Args, base: &Path, data: &Path) -> Result<Shift> {
    let given = Given::read(None, &args.set)?;
    for key in ["model", "data.train", "data.eval", "data.eval_fraction"] {
        ensure!(
            !given.has(key),
            "'{key}' cannot be set here: the model is that of `--base`, and all rows of `--data` are evaluated"
        );
    }
    let mut settings = vec!["data.shuffle=false".to_owned()];
    for (key, path) in [("model", base), ("data.train", data)] {
        settings.push(format!("{key}={}", serde_json::to_string(&path.display().to_string())?));
    }
    settings.extend(args.set.iter().cloned());
    let given = Given::read(None, &settings)?;
    let task = detect::task(&given)?;
    let settings = given.over(sample(task))?;
    let load = args.key_mapping.load_options();
    let asked = Asked { adapter: &args.adapter, saved, load: &load };
    let done = match task {
        TaskName::Language => {
            language::shift(RunSettings::new(&settings, &Ranks::alone())?, &asked)
        }
        TaskName::Classifier => {
            classifier::shift(&RunSettings::new(&settings, &Ranks::alone())?, &asked)
        }
    };
    done.map_err(|error| memory::explained(error, LESS_MEMORY))
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

fn range(tensor: &Tensor) -> (f64, f64, f64) {
    let values = tensor.to_kind(Kind::Double);
    match tensor.numel() {
        0 => (0., 0., 0.),
        _ => (
            values.min().double_value(&[]),
            values.mean(Kind::Double).double_value(&[]),
            values.max().double_value(&[]),
        ),
    }
}

fn tensor(key: &str, tensor: &Tensor) -> Value {
    let (min, mean, max) = range(tensor);
    json!({
        "key": key,
        "shape": tensor.size(),
        "kind": format!("{:?}", tensor.kind()),
        "bytes": bytes(tensor),
        "min": min,
        "mean": mean,
        "max": max,
    })
}

fn moved(diff: &AdapterDiff) -> Vec<Value> {
    let row = |row: &ln_tuning::TensorDiff| {
        json!({
            "module": row.module,
            "tensor": row.tensor,
            "rms": row.rms(),
            "norm": row.norm,
            "relative_norm": row.relative_norm,
            "max_abs": row.max_abs,
            "max_index": row.max_index,
        })
    };
    diff.tensors.iter().map(row).collect()
}

fn print(saved: &SavedAdapter, diff: Option<&AdapterDiff>) {
    println!("{}\n", saved.config.to_yaml().trim_end());
    let width = saved.tensors.iter().map(|(key, _)| key.len()).max().unwrap_or(0).max(6);
    println!(
        "{:<width$} {:>12} {:>9} {:>9} {:>9} {:>9}",
        "tensor", "shape", "kind", "min", "mean", "max"
    );
    for (key, tensor) in &saved.tensors {
        let (min, mean, max) = range(tensor);
        let (shape, kind) = (format!("{:?}", tensor.size()), format!("{:?}", tensor.kind()));
        println!("{key:<width$} {shape:>12} {kind:>9} {min:>9.4} {mean:>9.4} {max:>9.4}");
    }
    let numbers: usize = saved.tensors.iter().map(|(_, t)| t.numel()).sum();
    let size: usize = saved.tensors.iter().map(|(_, t)| bytes(t)).sum();
    println!("\n{} tensors, {numbers} numbers, {size} bytes", saved.tensors.len());
    match diff {
        Some(diff) => println!("\n{diff}"),
        None => println!(
            "With --base MODEL this also says which norms moved, and how far; with --data, how much of that helps."
        ),
    }
}
