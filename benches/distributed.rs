//! Data-parallel training on one machine, one thread for each rank: the time of a step with one and two ranks, the
//! all-reduce beside that of Python, and the memory of two ranks beside one.
//!
//! `cargo bench --features distributed --bench distributed`, or `make distributed-bench`: about four minutes; `-- quick`
//! shows in half a minute that it works. Every process starts this program again, or benches/distributed.py, with the
//! variables of a launcher.

mod place;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
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

/// Bytes of an all-reduce: the norms of half of a 3B model, those of an 8B model, and what full fine-tuning would send.
const SIZES: [usize; 3] = [350_000, 1_400_000, 100_000_000];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["rank", "steps", dir, rounds] => steps(Path::new(dir), rounds.parse()?),
        ["rank", "memory", dir] => memory(Path::new(dir)),
        ["rank", "all_reduce"] => all_reduce(),
        [] => compare(9, 3),
        ["quick"] => compare(2, 1),
        _ => anyhow::bail!("expected no argument, or 'quick'"),
    }
}

fn compare(rounds: usize, turns: usize) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("distributed-").tempdir_in(".")?;
    let bytes = write(dir.path())?;
    println!(
        "a llama of {:.0} MB in f32; {ROWS} x {LENGTH} tokens for each rank",
        bytes as f64 / 1e6
    );
    let dir = dir.path().to_str().context("the directory's name is not in UTF-8")?;

    let found = ranks(&ours(&["steps", dir, &rounds.to_string()])?, 2)?.remove(0);
    println!("\n| a step | milliseconds | CPU milliseconds of rank 0 |\n|---|---:|---:|");
    for (name, value) in found.as_object().context("no table")? {
        println!("| {name} | {:.1} | {:.1} |", number(&value["ms"])?, number(&value["cpu_ms"])?);
    }
    let ms = |name: &str| number(&found[name]["ms"]);
    println!(
        "efficiency at 2 ranks: {:.3} of one rank alone, {:.3} of two that do not know each other",
        ms(ALONE)? / ms(REDUCED)?,
        ms(BESIDE)? / ms(REDUCED)?
    );

    let (mut own, mut python) = (Vec::new(), Vec::new());
    let theirs = {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/distributed.py");
        let sizes = SIZES.map(|size| size.to_string());
        let words = [place::python().into(), script.into_os_string()];
        words.into_iter().chain(sizes.map(Into::into)).collect::<Vec<_>>()
    };
    for _ in 0..turns {
        own.push(ranks(&ours(&["all_reduce"])?, 2)?.remove(0));
        python.push(ranks(&theirs, 2)?.remove(0));
    }
    println!("\n| all-reduce of 2 ranks | ours, ms | Python's Gloo, ms | Python ÷ ours |\n|---:|---:|---:|---:|");
    for (at, size) in SIZES.iter().enumerate() {
        let of = |all: &[Value]| -> Result<f64> {
            let values = all.iter().map(|medians| number(&medians[at]));
            Ok(median(values.collect::<Result<_>>()?) * 1e3)
        };
        let (own, python) = (of(&own)?, of(&python)?);
        println!("| {} KB | {own:.2} | {python:.2} | {:.2} |", size / 1000, python / own);
    }

    println!("\n| ranks | MB of all together | of that not of the file |\n|---:|---:|---:|");
    for world in [1, 2] {
        let all = ranks(&ours(&["memory", dir])?, world)?;
        let sum = |key: &str| -> Result<f64> {
            all.iter().map(|rank| number(&rank[key])).sum::<Result<f64>>()
        };
        println!("| {world} | {:.0} | {:.0} |", sum("pss")? / 1e6, sum("anonymous")? / 1e6);
    }
    Ok(())
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().context("not a number")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// This program as a rank.
fn ours(words: &[&str]) -> Result<Vec<std::ffi::OsString>> {
    let mut command = vec![std::env::current_exe()?.into_os_string(), "rank".into()];
    command.extend(words.iter().map(Into::into));
    Ok(command)
}

/// Runs a command on every rank, and gives what each printed; some print nothing.
fn ranks(command: &[std::ffi::OsString], world: usize) -> Result<Vec<Value>> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut children = Vec::new();
    for rank in 0..world {
        let mut child = Command::new(&command[0]);
        child.args(&command[1..]).stdout(Stdio::piped()).env("OMP_NUM_THREADS", "1");
        child.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        child.env("WORLD_SIZE", world.to_string());
        child.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        children.push(child.spawn()?);
    }
    let mut printed = Vec::new();
    for child in children {
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{command:?} ended with {}", output.status);
        if !output.stdout.is_empty() {
            printed.push(serde_json::from_slice(&output.stdout)?);
        }
    }
    Ok(printed)
}

fn print(value: &Value) -> Result<()> {
    println!("{value}");
    Ok(std::io::stdout().flush()?)
}

const ROWS: i64 = 2;
const LENGTH: i64 = 128;

fn config() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1536,
        "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 4,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "architectures": ["LlamaForCausalLM"],
    })
}

/// A llama of random weights. Gives the size of the file.
fn write(dir: &Path) -> Result<u64> {
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

const ALONE: &str = "1 rank, the other core idle";
const BESIDE: &str = "2 ranks that do not know each other";
const REDUCED: &str = "2 ranks, gradients reduced";
/// Steps between two readings of the clock.
const BLOCK: usize = 4;

/// Blocks of steps of each way, in turn, so that all see the same machine. The ranks wait for each other in between.
fn steps(dir: &Path, rounds: usize) -> Result<()> {
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

fn all_reduce() -> Result<()> {
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
fn memory(dir: &Path) -> Result<()> {
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
