//! Loading a checkpoint of 1 GB (a Llama in bf16, random weights) beside transformers' `from_pretrained`.
//!
//! `cargo bench --bench loading_vs_transformers` runs both alternately, each time in a process of its own with the file
//! in the page cache, and prints medians: seconds to a usable model and to its first logits, and the memory that the
//! process then holds, private (anonymous) and shared (the file's pages) apart. target/bench/loading.json holds the
//! same. `-- --device cuda` loads to the GPU, and tells what is then kept there beside CUDA's context.

mod place;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use ln_tuning::device::{best_device, cuda_status, memory_info};
use ln_tuning::models::{Decoder, DecoderConfig, Model, ModelConfig};
use ln_tuning::pretrained;
use serde_json::{json, Value};
use tch::{no_grad, Cuda, Device, Kind, Tensor};

const THREADS: i32 = 2;
const PAIRS: usize = 5;

/// The checkpoint, made once.
fn checkpoint(dir: &Path) -> Result<()> {
    if dir.join("model.safetensors").exists() {
        return Ok(());
    }
    eprintln!("making a checkpoint in '{}'", dir.display());
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "vocab_size": 64_000,
        "hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_key_value_heads": 12, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
    });
    tch::manual_seed(0);
    let mut vs = tch::nn::VarStore::new(Device::Cpu);
    Decoder::new(&vs.root(), &DecoderConfig::from_value(&config)?)?;
    vs.bfloat16();
    pretrained::save(&vs, dir, &format!("{config:#}"))?;
    Ok(())
}

/// Megabytes: private, and of files.
fn memory() -> Result<(f64, f64)> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let megabytes = |key: &str| -> Result<f64> {
        let line = status.lines().find(|line| line.starts_with(key)).context("no such line")?;
        Ok(line.split_whitespace().nth(1).context("no number")?.parse::<f64>()? / 1024.)
    };
    Ok((megabytes("RssAnon")?, megabytes("RssFile")?))
}

/// Megabytes that are taken on a GPU.
fn on_device(device: Device) -> Result<f64> {
    let Device::Cuda(index) = device else { return Ok(0.) };
    Cuda::synchronize(index as i64);
    let memory = memory_info(device)?;
    Ok((memory.total - memory.free) as f64 / (1 << 20) as f64)
}

/// The work of a child process.
fn load(dir: &str, device: &str) -> Result<()> {
    // First of all: libtorch looks for CUDA once.
    let device = if device == "cpu" { Device::Cpu } else { best_device() };
    tch::set_num_threads(THREADS);
    let (before, taken) = (memory()?, on_device(device)?);
    let start = Instant::now();
    let (_vs, model) = Decoder::from_pretrained(dir, device, None)?;
    let kept = on_device(device)? - taken;
    let loaded = start.elapsed().as_secs_f64();
    let held = memory()?;
    let ids = Tensor::arange(16, (Kind::Int64, device)).view([1, -1]);
    let logits = no_grad(|| model.logits(&ids))?;
    let kept_after = on_device(device)? - taken;
    let first = start.elapsed().as_secs_f64();
    let used = memory()?;
    let report = json!({
        "import": 0., "load": loaded, "first": first, "private": held.0 - before.0, "shared": held.1 - before.1,
        "private_after": used.0 - before.0, "device": kept, "device_after": kept_after, "sum": logits.sum(Kind::Float).double_value(&[]),
    });
    println!("{report}");
    Ok(())
}

fn answer(command: &mut Command) -> Result<Value> {
    let output = command.output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{error}");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with('{'));
    Ok(serde_json::from_str(line.with_context(|| format!("{text}{error}"))?)?)
}

fn median(reports: &[Value], key: &str) -> f64 {
    let mut values: Vec<f64> = reports.iter().filter_map(|report| report[key].as_f64()).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1).map(String::as_str)
    };
    let device = after("--device").unwrap_or("cpu");
    if let Some(dir) = after("--load") {
        return load(dir, device);
    }
    anyhow::ensure!(
        ["cpu", "cuda"].contains(&device),
        "--device is {device}, expected cpu or cuda"
    );
    anyhow::ensure!(device == "cpu" || cuda_status().is_available(), "{}", cuda_status());
    let reports = place::reports()?;
    let dir = reports.join("llama-1gb");
    checkpoint(&dir)?;
    let python = place::python();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // The first pair brings the file into the page cache.
    for pair in 0..=PAIRS {
        let mut command = Command::new(std::env::current_exe()?);
        let own = answer(command.arg("--load").arg(&dir).args(["--device", device]))?;
        let script = place::data().join("benches/transformers_loading.py");
        let arguments = [script.as_os_str(), dir.as_os_str()];
        let mut command = Command::new(&python);
        command.args(arguments).arg(THREADS.to_string()).arg(device).env("HF_HUB_OFFLINE", "1");
        let other = answer(&mut command)
            .with_context(|| format!("'{}' failed: run `make setup-tests`", python.display()))?;
        if pair > 0 {
            ours.push(own);
            theirs.push(other);
        }
    }
    let megabytes = std::fs::metadata(dir.join("model.safetensors"))?.len() >> 20;
    println!(
        "Llama in bf16, {megabytes} MB, to {device}, {THREADS} threads; medians of {PAIRS} pairs of processes"
    );
    println!("{:<36} {:>10} {:>13} {:>8}", "", "ours", "transformers", "ratio");
    let rows = [
        ("s to a usable model", "load"),
        ("s to its first logits (16 tokens)", "first"),
        ("s of imports before", "import"),
        ("MB private", "private"),
        ("MB private after the first logits", "private_after"),
        ("MB of the file's pages", "shared"),
        ("MB on the GPU", "device"),
        ("MB on the GPU after the first logits", "device_after"),
        ("sum of the logits", "sum"),
    ];
    let rows = rows.into_iter().filter(|(_, key)| device != "cpu" || !key.starts_with("device"));
    let mut report = Vec::new();
    for (name, key) in rows {
        let (a, b) = (median(&ours, key), median(&theirs, key));
        println!("{name:<36} {a:>10.4} {b:>13.4} {:>8.3}", b / a);
        report.push(json!({"row": name, "ours": a, "transformers": b}));
    }
    let path = reports.join(if device == "cpu" { "loading.json" } else { "loading-cuda.json" });
    let report = json!({"megabytes": megabytes, "device": device, "rows": report});
    std::fs::write(&path, format!("{report:#}\n"))?;
    println!("wrote {}", path.display());
    Ok(())
}
