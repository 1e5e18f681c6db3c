//! One rank: what it measures beside the others. Rank 0 prints it.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use ln_tuning::distributed::{ProcessGroup, ReduceOp};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, DecoderConfig, Inputs, Load, Model, ModelConfig};
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel, Optimizer};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::{median, SIZES};

fn print(value: &Value) -> Result<()> {
    println!("{value}");
    Ok(std::io::stdout().flush()?)
}

/// Of one rank in a step.
pub const ROWS: i64 = 2;
pub const LENGTH: i64 = 128;

fn config() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1536,
        "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 4,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "architectures": ["LlamaForCausalLM"],
    })
}

/// A llama of random weights. Gives the size of the file.
pub fn write(dir: &Path) -> Result<u64> {
    let vs = VarStore::new(Device::Cpu);
    Decoder::new(&vs.root(), &DecoderConfig::from_value(&config())?)?;
    ln_tuning::pretrained::save(&vs, dir, &config().to_string())?;
    Ok(std::fs::metadata(dir.join("model.safetensors"))?.len())
}

struct Training {
    _vs: VarStore,
    model: Decoder,
    opt: Optimizer,
    _tuned: LnTuningModel,
    ids: Tensor,
}

impl Training {
    fn new(dir: &Path, rank: usize, group: Option<&Arc<ProcessGroup>>) -> Result<Self> {
        let (vs, model) = Decoder::from_pretrained_with(dir, &Load::on(Device::Cpu))?;
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
        let mut opt = tuned.optimizer(AdamW::default(), 1e-4)?;
        if let Some(group) = group {
            opt.set_process_group(group.clone())?;
        }
        let index = Tensor::arange(ROWS * LENGTH, (Kind::Int64, Device::Cpu)) + rank as i64 * 7919;
        let ids = (&index * &index * 31).remainder(4096).view([ROWS, LENGTH]);
        Ok(Training { _vs: vs, model, opt, _tuned: tuned, ids })
    }

    fn step(&mut self) -> Result<()> {
        self.opt.zero_grad()?;
        let inputs = Inputs::new(&self.ids).train(true);
        let loss = self.model.loss(inputs, &self.ids, &LinearCrossEntropy::default())?;
        self.opt.backward(&loss)?;
        self.opt.step()?;
        Ok(())
    }
}

/// Ways to make steps: rank 0 while the others wait, all without a word to each other, all together.
pub const ALONE: &str = "alone";
pub const BESIDE: &str = "beside";
pub const REDUCED: &str = "reduced";
/// Steps between two readings of the clock.
const BLOCK: usize = 4;

/// Blocks of steps of each way, in turn, so that all see the same machine. The ranks wait for each other in between.
pub fn steps(dir: &Path, rounds: usize) -> Result<()> {
    tch::set_num_threads(1);
    let group = Arc::new(ProcessGroup::from_env()?);
    let rank = group.rank();
    let mut single = Training::new(dir, rank, None)?;
    let mut reduced = Training::new(dir, rank, Some(&group))?;
    let mut times = vec![Vec::new(); 3];
    for round in 0..=rounds {
        for (way, times) in times.iter_mut().enumerate() {
            group.barrier()?;
            let (begun, cpu) = (Instant::now(), cpu_seconds()?);
            for _ in 0..BLOCK {
                match way {
                    0 if rank > 0 => (),
                    0 | 1 => single.step()?,
                    _ => reduced.step()?,
                }
            }
            let per_step = |seconds: f64| seconds * 1e3 / BLOCK as f64;
            let taken = (per_step(begun.elapsed().as_secs_f64()), per_step(cpu_seconds()? - cpu));
            // The first round warms up.
            if round > 0 {
                times.push(taken);
            }
        }
    }
    group.barrier()?;
    if rank > 0 {
        return Ok(());
    }
    let mut found = json!({});
    for (name, times) in [ALONE, BESIDE, REDUCED].iter().zip(times) {
        let (wall, cpu): (Vec<f64>, Vec<f64>) = times.into_iter().unzip();
        found[*name] = json!({ "ms": median(wall), "cpu_ms": median(cpu) });
    }
    print(&found)
}

/// Seconds of processors that this process has used.
fn cpu_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let fields = text.rsplit(')').next().context("no fields")?.split_whitespace();
    let ticks: Vec<f64> = fields.skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.)
}

pub fn all_reduce() -> Result<()> {
    tch::set_num_threads(1);
    let group = ProcessGroup::from_env()?;
    let mut medians = Vec::new();
    for size in SIZES {
        let mut tensor = Tensor::ones([size as i64 / 4], (Kind::Float, Device::Cpu));
        let mut times = Vec::new();
        for _ in 0..(100_000_000 / size).clamp(5, 100) + 2 {
            group.barrier()?;
            let _ = tensor.fill_(1.);
            let begun = Instant::now();
            group.all_reduce(&mut tensor, ReduceOp::Sum)?;
            times.push(begun.elapsed().as_secs_f64());
        }
        ensure!(tensor.double_value(&[-1]) == group.world_size() as f64);
        medians.push(median(times.split_off(2)));
    }
    group.barrier()?;
    if group.rank() == 0 {
        print(&json!(medians))?;
    }
    Ok(())
}

/// The memory of this rank while all of them train. A page that two processes share counts for half in each (PSS).
pub fn memory(dir: &Path) -> Result<()> {
    tch::set_num_threads(1);
    let group = Arc::new(ProcessGroup::from_env()?);
    let mut training = Training::new(dir, group.rank(), Some(&group))?;
    for _ in 0..3 {
        training.step()?;
    }
    group.barrier()?;
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let of = |key: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no line")?;
        Ok(number.trim().parse::<u64>()? * 1024)
    };
    print(&json!({ "pss": of("Pss")?, "anonymous": of("Anonymous")? }))?;
    // Nobody leaves before all have read theirs.
    Ok(group.barrier()?)
}
