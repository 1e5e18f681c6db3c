//! Training steps of a model whose weights come from disk, beside those of one that is merely mapped, or in memory.
//!
//! `cargo bench --bench streamed -- [LAYERS] [HIDDEN] [BATCHES] [TOKENS]` prints a table. Each way runs in a process of
//! its own, which starts with nothing of the file in the machine's memory.
//!
//! Under a limit of memory, the model is written before: `… -- write DIR 24 1280`, then `… -- streamed DIR 4 16` in
//! `systemd-run --scope -p MemoryMax=256M -p MemorySwapMax=0`, and the same with `mapped`.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use ln_tuning::loss::{LinearCrossEntropy, Reduction};
use ln_tuning::models::{Decoder, DecoderConfig, Inputs, Load, Model, ModelConfig};
use ln_tuning::recompute::Recompute;
use ln_tuning::{AdamW, LnTuningConfig};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

const STEPS: usize = 2;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match &arguments[..] {
        [way, dir, layers, hidden] if way == "write" => {
            std::fs::create_dir_all(dir)?;
            let bytes = write(Path::new(dir), layers.parse()?, hidden.parse()?)?;
            println!("{:.0} MB", mb(bytes));
            return Ok(());
        }
        [way, dir, batches, tokens] if Path::new(dir).is_dir() => {
            return train(way, Path::new(dir), batches.parse()?, tokens.parse()?);
        }
        _ => (),
    }
    let number = |at: usize, default: i64| match arguments.get(at) {
        Some(text) => text.parse::<i64>().with_context(|| format!("'{text}' is no number")),
        None => Ok(default),
    };
    let (layers, hidden) = (number(0, 24)?, number(1, 1280)?);
    let (batches, tokens) = (number(2, 4)?, number(3, 256)?);
    let dir = tempfile::Builder::new().prefix("streamed-").tempdir_in(".")?;
    let bytes = write(dir.path(), layers, hidden)?;
    println!("{layers} layers, {:.0} MB; {batches} batches of {tokens} tokens a step", mb(bytes));
    println!("| weights | seconds a step | peak of the file in memory | of the process | read from disk |");
    println!("|---|---|---|---|---|");
    for way in ["device", "mapped", "streamed"] {
        let mut run = Command::new(std::env::current_exe()?);
        run.arg(way).arg(dir.path()).arg(batches.to_string()).arg(tokens.to_string());
        if !run.status()?.success() {
            println!("| {way} | ended by the system: memory is not enough | | | |");
        }
    }
    Ok(())
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// A llama of random weights in bf16, one block at a time. Gives the size of the file.
fn write(dir: &Path, layers: i64, hidden: i64) -> Result<u64> {
    let config = config(layers, hidden);
    let mut vs = VarStore::new(Device::Cpu);
    vs.set_kind(Kind::BFloat16);
    Decoder::new(&vs.root(), &DecoderConfig::from_value(&config)?)?;
    ln_tuning::pretrained::save(&vs, dir, &config.to_string())?;
    Ok(std::fs::metadata(dir.join("model.safetensors"))?.len())
}

fn config(layers: i64, hidden: i64) -> Value {
    json!({
        "model_type": "llama", "vocab_size": 512, "hidden_size": hidden, "intermediate_size": hidden * 3,
        "num_hidden_layers": layers, "num_attention_heads": hidden / 64, "num_key_value_heads": hidden / 64,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "architectures": ["LlamaForCausalLM"],
    })
}

/// Takes some steps with the weights kept in this way, and prints a line of a table.
fn train(way: &str, dir: &Path, batches: usize, tokens: i64) -> Result<()> {
    forget(&dir.join("model.safetensors"))?;
    let load = Load::on(Device::Cpu).frozen(way.parse()?);
    let (vs, model) = Decoder::from_pretrained_with(dir, &load)?;
    let tuned = ln_tuning::LnTuningModel::new(&vs, LnTuningConfig::default())?;
    let mut opt = tuned.optimizer(AdamW::default(), 1e-3)?;
    let ids: Vec<Tensor> = (0..batches as i64)
        .map(|at| {
            ((Tensor::arange(tokens, (Kind::Int64, Device::Cpu)) * 31 + at).remainder(512))
                .view([1, -1])
        })
        .collect();
    let targets = (tokens - 1) * batches as i64;
    let loss = LinearCrossEntropy::default().reduction(Reduction::SumOver(targets));
    let pairs: Vec<(Inputs, &Tensor)> = ids.iter().map(|ids| (Inputs::new(ids), ids)).collect();
    let (begun, peak, done) = (of_files()?, AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(of_files().unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut times = Vec::new();
        for _ in 0..STEPS {
            let start = Instant::now();
            opt.zero_grad()?;
            let losses = opt.backward_recompute_many(&Recompute::default(), |tape| {
                model.losses_with(&pairs, &loss, tape)
            });
            let losses = losses.inspect_err(|_| done.store(true, Ordering::Relaxed))?;
            opt.step()?;
            times.push(start.elapsed().as_secs_f64());
            ensure!(losses.iter().all(|loss| loss.double_value(&[]).is_finite()));
        }
        done.store(true, Ordering::Relaxed);
        let file = mb(peak.load(Ordering::Relaxed).saturating_sub(begun) as u64);
        let process = mb(status("VmHWM")? as u64);
        let io = std::fs::read_to_string("/proc/self/io")?;
        let read = io.lines().find_map(|line| line.strip_prefix("read_bytes: "));
        let read = mb(read.context("no read_bytes")?.parse()?);
        let times: Vec<String> = times.iter().map(|time| format!("{time:.2}")).collect();
        let times = times.join(", ");
        println!("| {way} | {times} | {file:.0} MB | {process:.0} MB | {read:.0} MB |");
        Ok(std::io::stdout().flush()?)
    })
}

/// Bytes of files' maps that are in memory.
fn of_files() -> Result<usize> {
    status("RssFile")
}

fn status(key: &str) -> Result<usize> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no such line")?;
    Ok(number.parse::<usize>()? * 1024)
}

/// Lets the system forget what it has of a file.
fn forget(path: &Path) -> Result<()> {
    let file = std::fs::File::open(path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}
