//! Training steps, generation and start-up beside real PEFT: the same weights, batches and threads.
//!
//! `cargo bench --bench train_vs_peft` prints a table and writes target/bench/train_vs_peft.jsonl; `-- --help` shows
//! the arguments. Every contender is a process of its own, so that its memory is its own. On the CPU they run
//! alternately, with medians over the pairs; on a GPU one after the other. The losses of all are printed, since only
//! the same work can be compared. "matrix products" is the share of our time that the step's products take alone.
//!
//! Memory on the CPU is the peak of the process. On a GPU it is what the process keeps there in the end, beside its
//! context, as the driver counts (`cudaMemGetInfo`): on both sides libtorch keeps the most that it has needed.
//!
//! A copy of the program finds its files by `LN_TUNING_DATA` (a folder with benches/peft_train.py) and
//! `LN_TUNING_PYTHON`.

mod contender;
mod floor;
mod growth;
mod measure;
mod options;
mod ours;
#[path = "../place/mod.rs"]
mod place;
mod report;
mod task;
mod who;
mod work;

use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use contender::Contender;
use ln_tuning::device::{cuda_status, CudaStatus};
use measure::{measure, median};
use options::Options;
use report::{line, processor, table, Report};
use serde_json::json;
use who::Who;
use work::{
    Batch, Shape, Weights, Work, LLAMA_3B, LLAMA_56M, LONG_VOCABULARY, MINILM, SMALL, SMOLLM2,
    THREADS,
};

const START_UP: &str = "start to first step";

fn work(name: &'static str, shape: Shape, kind: &'static str, batch: i64, length: i64) -> Work {
    let (batch, device) = (Batch::new(batch, length), "cpu");
    Work { name, shape, kind, batch, device, generates: false, weights: Weights::Random }
}

fn rows() -> Vec<(Work, Vec<Who>)> {
    use Who::*;
    let all = || vec![Ours, OursUnfused, OursPacked, Floor, Eager, Compiled];
    let encoder = || vec![Ours, OursUnfused, OursPacked, Eager, Compiled];
    let writes = || vec![Ours, OursUnfused, OursPacked, Eager];
    let long = || vec![Ours, OursUnfused, OursRecomputed, Eager, Checkpointed];
    let every = || vec![Ours, OursUnfused, Floor, Eager, Compiled, OursRecomputed, Checkpointed];
    // Of steps that all have one shape.
    let graphed = || [every(), vec![OursGraphed]].concat();
    let cuda =
        |name, batch| Work { batch, device: "cuda", ..work(name, LLAMA_3B, "bfloat16", 1, 1) };
    let deep = |name, kind| work(name, SMOLLM2, kind, 1, 512);
    let real = |name, kind, rows, length| Work {
        weights: Weights::SmolLm2,
        ..work(name, SMOLLM2, kind, rows, length)
    };
    let classifier = |name, kind| Work {
        batch: Batch { padded: true, ..Batch::new(16, 128) },
        weights: Weights::MiniLm,
        ..work(name, MINILM, kind, 16, 128)
    };
    let varies = Batch { varies: true, ..Batch::new(4, 768) };
    let packed = Batch { documents: Some(300), ..Batch::new(4, 2048) };
    let generates = |work| Work { generates: true, ..work };
    vec![
        (work("step, bf16, 4 x 256", LLAMA_56M, "bfloat16", 4, 256), all()),
        (work("step, f32, 4 x 256", LLAMA_56M, "float32", 4, 256), all()),
        (work("step, bf16, long vocabulary", LONG_VOCABULARY, "bfloat16", 2, 512), all()),
        (work("step, bf16, 4 x 1024", LLAMA_56M, "bfloat16", 4, 1024), long()),
        (work("step, f32, 4 x 1024", LLAMA_56M, "float32", 4, 1024), long()),
        (generates(work("generation, bf16", LLAMA_56M, "bfloat16", 1, 16)), writes()),
        (generates(work("generation, bf16, 8 rows", LLAMA_56M, "bfloat16", 8, 16)), writes()),
        (generates(work("generation, f32", LLAMA_56M, "float32", 1, 16)), writes()),
        (generates(work("generation, f32, 8 rows", LLAMA_56M, "float32", 8, 16)), writes()),
        (generates(real("generation, the real SmolLM2-135M, bf16", "bfloat16", 1, 16)), writes()),
        (real("step, the real SmolLM2-135M, bf16, 4 x 256", "bfloat16", 4, 256), all()),
        (real("step, the real SmolLM2-135M, f32, 4 x 256", "float32", 4, 256), all()),
        (deep("step, deep and narrow, bf16, 1 x 512", "bfloat16"), all()),
        (deep("step, deep and narrow, f32, 1 x 512", "float32"), all()),
        (classifier("step, the real MiniLM classifies, bf16, 16 x 128", "bfloat16"), encoder()),
        (classifier("step, the real MiniLM classifies, f32, 16 x 128", "float32"), encoder()),
        (cuda("CUDA, 3B, bf16, 4 x 768", Batch::new(4, 768)), graphed()),
        (cuda("CUDA, 3B, bf16, 1 x 128", Batch::new(1, 128)), graphed()),
        (cuda("CUDA, 3B, bf16, varying lengths", varies), every()),
        (cuda("CUDA, 3B, bf16, packed 4 x 2048", packed), every()),
        (
            generates(cuda("CUDA, 3B, bf16, generation", Batch::new(1, 16))),
            vec![Ours, OursUnfused, Eager],
        ),
    ]
}

/// From the start of a process to the end of its first step.
fn start_up(options: &Options) -> Result<serde_json::Value> {
    let work = work(START_UP, SMALL, "float32", 2, 32);
    let mut times: [Vec<f64>; 2] = Default::default();
    for pair in 0..=5 {
        for (who, times) in [Who::Ours, Who::Eager].into_iter().zip(&mut times) {
            if options.take(who) {
                let mut contender = Contender::start(who, &work, options)?;
                contender.step()?;
                // The first brings the files into the page cache.
                times.extend((pair > 0).then_some(contender.first));
            }
        }
    }
    let ratio = median(times[0].iter().zip(&times[1]).map(|(own, other)| other / own).collect());
    let [own, other] = times.map(median);
    println!("\n{} (5 pairs)", work.name);
    println!("  ours {own:.0} ms, PEFT eager {other:.0} ms: {ratio:.1}x");
    Ok(json!({"row": work.name, "ours_ms": own, "peft_ms": other, "ratio": ratio}))
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(task) = &options.child {
        return ours::child(task);
    }
    // Before anything else of libtorch, which looks for CUDA once.
    let cuda = cuda_status();
    let rows = rows();
    if options.list {
        rows.iter().for_each(|(work, _)| println!("{}", work.name));
        println!("{START_UP}");
        return Ok(());
    }
    let start = Instant::now();
    println!("{THREADS} threads; {}", processor());
    if options.growth {
        growth::growth(&options)?;
        println!("{:.0} s in all", start.elapsed().as_secs_f64());
        return Ok(());
    }
    let mut report = Report::new(&options)?;
    for (work, who) in rows.iter().filter(|(work, _)| options.asks_for(work.name)) {
        if work.device != "cpu" && !matches!(cuda, CudaStatus::Available { .. }) {
            println!("\n{}: not run. {cuda}", work.name);
            report.line(&json!({"row": work.name, "not_run": cuda.to_string()}))?;
            continue;
        }
        if let Some(error) = work.weights.package().and_then(Result::err) {
            println!("\n{}: not run. {error:#}", work.name);
            report.line(&json!({"row": work.name, "not_run": format!("{error:#}")}))?;
            continue;
        }
        let who: Vec<Who> = who.iter().copied().filter(|who| options.take(*who)).collect();
        let all =
            measure(work, &who, &options, |who, result| report.line(&line(work, who, result)))?;
        table(work, &all);
    }
    if options.asks_for(START_UP) {
        match start_up(&options) {
            Ok(line) => report.line(&line)?,
            Err(error) => {
                println!("\n{START_UP}: failed: {error:#}");
                report.line(&json!({"row": START_UP, "error": format!("{error:#}")}))?;
            }
        }
    }
    println!("\n{:.0} s in all", start.elapsed().as_secs_f64());
    println!("written to {}", Report::path(&options).display());
    Ok(())
}
