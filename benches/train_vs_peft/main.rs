//! Training steps, generation and start-up beside real PEFT: the same weights, batches and threads, run alternately.
//!
//! `cargo bench --bench train_vs_peft` prints a table, medians over the pairs, and writes target/bench/report.json.
//! Every contender is a process of its own, so that its peak memory is its own; the losses of all are printed, since
//! only the same work can be compared. "floor" is the share of our time that the step's matrix products take alone.
//!
//! Arguments behind `--`: `--row TEXT` (those whose names contain it; may stand several times), `--pairs N` (default
//! 7), `--seconds N` (ends a row early, after three pairs; default 180), `--ours-only`, `--no-compile`. `--growth`
//! measures how a step's time and memory grow instead, and writes target/bench/growth.json and a picture to `--svg
//! PATH` (default: target/bench/growth.svg).

mod contender;
mod growth;
mod ours;
mod work;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use contender::{Contender, Who};
use ln_tuning::device::{cuda_status, CudaStatus};
use serde_json::{json, Value};
use work::{Shape, Work, LLAMA_3B, LLAMA_56M, LONG_VOCABULARY, SMALL, THREADS};

/// Steps that do not count, compilation among them.
const WARM_UP: usize = 2;

struct Options {
    rows: Vec<String>,
    pairs: usize,
    seconds: f64,
    ours_only: bool,
    compile: bool,
    growth: bool,
    svg: Option<String>,
}

impl Options {
    fn parse() -> Result<Options> {
        let arguments: Vec<String> = std::env::args().collect();
        let value = |name: &str| {
            let place = arguments.iter().position(|argument| argument == name);
            place.and_then(|place| arguments.get(place + 1))
        };
        let has = |name: &str| arguments.iter().any(|argument| argument == name);
        let places = arguments.iter().zip(&arguments[1..]).filter(|(name, _)| *name == "--row");
        let rows = places.map(|(_, text)| text.clone()).collect();
        Ok(Options {
            rows,
            pairs: value("--pairs").map_or(Ok(7), |n| n.parse())?,
            seconds: value("--seconds").map_or(Ok(180.), |n| n.parse())?,
            ours_only: has("--ours-only"),
            compile: !has("--no-compile"),
            growth: has("--growth"),
            svg: value("--svg").cloned(),
        })
    }

    fn asks_for(&self, name: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|part| name.contains(part.as_str()))
    }

    fn take(&self, who: Who) -> bool {
        !(self.ours_only && who.is_python() || !self.compile && who == Who::Compiled)
    }
}

fn work(name: &'static str, shape: Shape, kind: &'static str, batch: i64, length: i64) -> Work {
    Work { name, shape, kind, batch, length, device: "cpu", generates: false }
}

fn rows() -> Vec<(Work, Vec<Who>)> {
    use Who::*;
    let all = vec![Ours, Floor, Eager, Compiled];
    let generation =
        Work { generates: true, ..work("generation, bf16", LLAMA_56M, "bfloat16", 1, 16) };
    let cuda = |name, batch, length| Work {
        device: "cuda",
        ..work(name, LLAMA_3B, "bfloat16", batch, length)
    };
    vec![
        (work("step, bf16, 4 x 256", LLAMA_56M, "bfloat16", 4, 256), all.clone()),
        (work("step, f32, 4 x 256", LLAMA_56M, "float32", 4, 256), all.clone()),
        (work("step, bf16, long vocabulary", LONG_VOCABULARY, "bfloat16", 2, 512), all.clone()),
        (
            work("step, bf16, 4 x 1024", LLAMA_56M, "bfloat16", 4, 1024),
            vec![Ours, OursRecomputed, Eager, Checkpointed],
        ),
        (
            work("step, f32, 4 x 1024", LLAMA_56M, "float32", 4, 1024),
            vec![Ours, OursRecomputed, Eager, Checkpointed],
        ),
        (generation, vec![Ours, Eager]),
        (cuda("CUDA, 3B, bf16, 4 x 768", 4, 768), all.clone()),
        (cuda("CUDA, 3B, bf16, 1 x 128", 1, 128), all),
    ]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One row: all contenders in turn, until there are enough pairs.
fn measure(work: &Work, who: &[Who], options: &Options) -> Result<Value> {
    let dir = work.directory()?;
    let who =
        who.iter().filter(|who| options.take(**who) && !(work.generates && **who == Who::Floor));
    let contenders = who.map(|who| Contender::start(*who, work, &dir));
    let mut contenders = contenders.collect::<Result<Vec<_>>>()?;
    for _ in 0..WARM_UP {
        contenders.iter_mut().try_for_each(Contender::step)?;
    }
    let start = Instant::now();
    for pair in 0..options.pairs {
        if pair >= 3 && start.elapsed().as_secs_f64() > options.seconds {
            break;
        }
        contenders.iter_mut().try_for_each(Contender::step)?;
    }
    println!("\n{} ({} pairs)", work.name, contenders[0].times.len() - WARM_UP);
    println!("  {:<20}{:>10}{:>9}{:>10}{:>9}  losses", "", "ms", "ratio", "MB", "ratio");
    let own = contenders[0].times[WARM_UP..].to_vec();
    let own_megabytes = contenders[0].megabytes(work.device)?;
    let mut report = Vec::new();
    for contender in &contenders {
        let times = &contender.times[WARM_UP..];
        let time = median(times.to_vec());
        let ratio = median(times.iter().zip(&own).map(|(other, own)| other / own).collect());
        let name = contender.who.name();
        if contender.who == Who::Floor {
            println!("  {name:<20}{time:>10.1}{ratio:>9.3}");
            report.push(json!({"who": name, "ms": time, "share_of_ours": ratio}));
            continue;
        }
        let megabytes = contender.megabytes(work.device)?;
        let memory = own_megabytes / megabytes;
        let values: Vec<String> = contender.values.iter().map(|v| format!("{v:.7}")).collect();
        let (first, last) = (&values[0], &values[values.len() - 1]);
        println!(
            "  {name:<20}{time:>10.1}{ratio:>8.2}x{megabytes:>10.0}{memory:>8.2}x  {first} … {last}"
        );
        report.push(json!({
            "who": name, "ms": time, "times": times, "time_over_ours": ratio, "megabytes": megabytes,
            "ours_over_megabytes": memory, "losses": contender.values,
        }));
    }
    Ok(json!({
        "row": work.name, "batch": work.batch, "length": work.length, "kind": work.kind, "contenders": report,
    }))
}

/// From the start of a process to the end of its first step.
fn start_up(options: &Options) -> Result<Value> {
    let work = work("start to first step", SMALL, "float32", 2, 32);
    let dir = work.directory()?;
    let mut times: [Vec<f64>; 2] = Default::default();
    for pair in 0..=5 {
        for (who, times) in [Who::Ours, Who::Eager].into_iter().zip(&mut times) {
            if options.take(who) {
                let mut contender = Contender::start(who, &work, &dir)?;
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
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(place) = arguments.iter().position(|argument| argument == "--child") {
        return ours::child(&arguments[place + 1..]);
    }
    let options = Options::parse()?;
    let start = Instant::now();
    println!("{THREADS} threads; {}", processor());
    if options.growth {
        growth::growth(&options, options.svg.as_deref())?;
        println!("{:.0} s in all", start.elapsed().as_secs_f64());
        return Ok(());
    }
    let mut report = Vec::new();
    for (work, who) in rows().iter().filter(|(work, _)| options.asks_for(work.name)) {
        let cuda = (work.device != "cpu").then(cuda_status);
        match cuda {
            Some(status) if !matches!(status, CudaStatus::Available { .. }) => {
                println!("\n{}: not run. {status}", work.name);
                report.push(json!({"row": work.name, "not_run": status.to_string()}));
            }
            _ => report.push(measure(work, who, &options)?),
        }
    }
    if options.asks_for("start to first step") {
        report.push(start_up(&options)?);
    }
    println!("\n{:.0} s in all", start.elapsed().as_secs_f64());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench/report.json");
    std::fs::create_dir_all(path.parent().context("no parent")?)?;
    let report = json!({"threads": THREADS, "processor": processor(), "rows": report});
    std::fs::write(&path, format!("{report:#}\n"))?;
    println!("written to {}", path.display());
    Ok(())
}

/// The processor's name, and the instructions for bf16 that it has.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        let line = info.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split(':').nth(1)).unwrap_or("unknown").trim().to_owned()
    };
    let flags = field("flags");
    let bf16 = ["avx512_bf16", "amx_bf16"];
    let found: Vec<&str> =
        bf16.into_iter().filter(|flag| flags.split(' ').any(|f| f == *flag)).collect();
    match found.is_empty() {
        true => format!("{}, without instructions for bf16", field("model name")),
        false => format!("{}, {}", field("model name"), found.join(", ")),
    }
}
