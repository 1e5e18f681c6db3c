//! On a GPU: rows × resident adapters, with libtorch's operators and with the fused functions, and beside PEFT.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use ln_tuning::device::{best_device, cuda_status, memory_info};
use serde_json::{json, Value};
use tch::{Device, Kind};

use crate::ours::{Ours, Through, Way};
use crate::peft::Peft;
use crate::task::{Shape, Targets, LLAMA_3B, SMALL};
use crate::{medians, place, Mix, Side, Times, THREADS};

/// The size of what is measured.
struct Size {
    shape: Shape,
    /// The adapters that PEFT has, and the batches that it gets.
    adapters: usize,
    beside: [i64; 2],
    /// Resident adapters, and batches for each number of them.
    resident: [usize; 4],
    growing: [i64; 2],
    length: i64,
}

const LARGE: Size = Size {
    shape: LLAMA_3B,
    adapters: 16,
    beside: [16, 64],
    resident: [1, 16, 256, 1024],
    growing: [8, 64],
    length: 64,
};

/// To see that it works.
const QUICK: Size = Size {
    shape: SMALL,
    adapters: 3,
    beside: [3, 6],
    resident: [1, 3, 4, 5],
    growing: [2, 6],
    length: 8,
};

/// Seconds since the start after which rounds are as few as they can be: ours, and PEFT's for each of its targets; and
/// after which PEFT is given up.
const LATE_OF_OURS: u64 = 35;
const LATE: [u64; 2] = [52, 78];
const TOO_LATE: u64 = 96;

const ROUNDS: usize = 5;
const ROUNDS_OF_PEFT: usize = 3;

/// All results so far; the file is replaced with each result, so that the end of the process loses nothing.
struct Report {
    path: PathBuf,
    content: Value,
    /// Those of ours with mixed rows, for the ratios: way, rows, adapters, tokens a second.
    mixed: Vec<(Way, i64, usize, [f64; 2])>,
}

impl Report {
    fn add(&mut self, list: &str, entry: Value) -> Result<()> {
        if let Some(list) = self.content[list].as_array_mut() {
            list.push(entry);
        }
        Ok(std::fs::write(&self.path, format!("{:#}\n", self.content))?)
    }
}

/// Measures and prints.
pub fn measure(quick: bool, ours_only: bool, start: Instant) -> Result<()> {
    // Before anything else of libtorch, which looks for CUDA once.
    let device = best_device();
    ensure!(device.is_cuda(), "{}", cuda_status());
    tch::set_num_threads(THREADS);
    let size = if quick { QUICK } else { LARGE };
    let kind = Kind::BFloat16;
    let until = start + Duration::from_secs(TOO_LATE);
    let of = |targets| Peft::spawn(&size.shape, kind, targets, THREADS, device, until);
    let targets = [Targets::Default, Targets::AllLinear].into_iter().filter(|_| !ours_only);
    let others: Vec<_> = targets.map(|targets| (targets, of(targets))).collect();
    let content = json!({
        "device": name_of_device(), "model": size.shape.name, "kind": "bfloat16", "length": size.length,
        "ours": [], "loading": [], "peft": [],
    });
    let path = place::reports()?.join("mixed_batches_cuda.json");
    let mut report = Report { path, content, mixed: Vec::new() };
    head(&size, &report);
    ours(&size, kind, device, start + Duration::from_secs(LATE_OF_OURS), &mut report)?;
    for ((targets, peft), late) in others.into_iter().zip(LATE) {
        let late = start + Duration::from_secs(late);
        let name = format!("PEFT, LoRA of {}", targets.name());
        if let Err(error) = peft.and_then(|peft| beside(&size, &name, peft, late, &mut report)) {
            println!("| {name} | failed: {error:#} ||||||||||||");
            report.add("peft", json!({"name": name, "error": format!("{error:#}")}))?;
        }
    }
    println!("\n{:.0} s in all", start.elapsed().as_secs_f64());
    println!("written to {}", report.path.display());
    Ok(())
}

fn head(size: &Size, report: &Report) {
    println!(
        "{}; a llama of {}, bf16, random weights, prompts of {} tokens. Tokens a second with one adapter for all rows, and \
         with each of the adapters in turn; `of one`: mixed ÷ one. `ours ÷ it`: ours with libtorch's operators, and fused, \
         with as many mixed rows.",
        report.content["device"].as_str().unwrap_or_default(),
        size.shape.name,
        size.length
    );
    println!(
        "`loaded`: seconds in which the adapters behind the first were loaded from a directory, on our side since the line \
         above: LN adapters of {:.0} kB in f32 here, LoRA of rank 8 there, each with the function `load_adapter`. `MB`: what the \
         device holds more than with one adapter, as its driver counts, after a batch has named each.\n",
        size.shape.weights() as f64 * 4. / 1e3
    );
    println!(
        "| | rows | adapters | prefill: one | mixed | of one | ours ÷ it | decode: one | mixed | of one | ours ÷ it | loaded | MB |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
}

/// Ours with each number of resident adapters.
fn ours(size: &Size, kind: Kind, device: Device, late: Instant, report: &mut Report) -> Result<()> {
    let used = || -> Result<f64> {
        let memory = memory_info(device)?;
        Ok((memory.total - memory.free) as f64 / 1e6)
    };
    let mut ours = Ours::new(size.shape, kind, device)?;
    let ways: &[Way] =
        if cfg!(feature = "kernels") { &[Way::Operators, Way::Fused] } else { &[Way::Operators] };
    let mut before = None;
    for adapters in size.resident {
        let seconds = ours.grow(adapters)?;
        ours.name_each()?;
        let more = before.map_or(Ok(0.), |before: f64| used().map(|now| now - before))?;
        report
            .add("loading", json!({"adapters": adapters, "seconds": seconds, "megabytes": more}))?;
        let mut batches = size.growing.to_vec();
        if adapters == size.adapters {
            batches.extend(size.beside);
            batches.sort_unstable();
            batches.dedup();
        }
        for (at, rows) in batches.into_iter().enumerate() {
            let mut sides: Vec<Through> = ways.iter().map(|way| Through(&ours, *way)).collect();
            let mut sides: Vec<&mut dyn Side> =
                sides.iter_mut().map(|side| side as &mut dyn Side).collect();
            let mixes = [Mix::One, Mix::Each(adapters)];
            let asked: Vec<(usize, Mix)> =
                (0..ways.len()).flat_map(|side| mixes.map(|mix| (side, mix))).collect();
            let times = medians(&mut sides, &asked, (rows, size.length), ROUNDS, Some(late))?;
            for (number, (way, both)) in ways.iter().zip(times.chunks(2)).enumerate() {
                let [one, mixed] = [both[0], both[1]].map(|times| times.speeds(rows, size.length));
                report.mixed.push((*way, rows, adapters, mixed));
                let shown = at == 0 && number == 0 && adapters > 1;
                let loading = if shown {
                    [format!("{seconds:.2} s"), format!("{more:.0}")]
                } else {
                    Default::default()
                };
                line(way.name(), rows, Some(adapters), [Some(one), Some(mixed)], &[], loading);
                report.add(
                    "ours",
                    json!({
                        "way": way.name(), "rows": rows, "adapters": adapters, "one": speeds(one), "mixed": speeds(mixed),
                    }),
                )?;
            }
        }
        // With the memory that batches take.
        if before.is_none() {
            before = Some(used()?);
        }
    }
    Ok(())
}

/// PEFT with some of its targets; with its default ones, also transformers without any adapter.
fn beside(
    size: &Size,
    name: &str,
    mut peft: Peft,
    late: Instant,
    report: &mut Report,
) -> Result<()> {
    peft.ready()?;
    let seconds = peft.grow(size.adapters)?;
    let each = Mix::Each(size.adapters);
    for (at, rows) in size.beside.into_iter().enumerate() {
        let mixes = [Mix::Base, Mix::One, each].map(|mix| (0, mix));
        let batch = (rows, size.length);
        let times: Vec<Times> =
            medians(&mut [&mut peft], &mixes, batch, ROUNDS_OF_PEFT, Some(late))?;
        let [base, one, mixed] =
            [times[0], times[1], times[2]].map(|times| times.speeds(rows, size.length));
        let of: Vec<[f64; 2]> = report
            .mixed
            .iter()
            .filter(|(_, of_rows, adapters, _)| (*of_rows, *adapters) == (rows, size.adapters))
            .map(|(.., speeds)| *speeds)
            .collect();
        let loaded = if at == 0 { format!("{seconds:.2} s") } else { String::new() };
        line(
            name,
            rows,
            Some(size.adapters),
            [Some(one), Some(mixed)],
            &of,
            [loaded, String::new()],
        );
        line("it without adapters", rows, None, [Some(base), None], &of, Default::default());
        report.add(
            "peft",
            json!({
                "name": name, "rows": rows, "adapters": size.adapters, "base": speeds(base), "one": speeds(one),
                "mixed": speeds(mixed), "loading_seconds": seconds,
            }),
        )?;
    }
    Ok(())
}

/// A line of the table. `of`: speeds of ours to compare with.
fn line(
    name: &str,
    rows: i64,
    adapters: Option<usize>,
    [one, mixed]: [Option<[f64; 2]>; 2],
    of: &[[f64; 2]],
    [loaded, megabytes]: [String; 2],
) {
    let adapters = adapters.map_or(String::new(), |adapters| adapters.to_string());
    let part = |at: usize| {
        let shown = |speeds: Option<[f64; 2]>| {
            speeds.map_or(String::new(), |speeds| format!("{:.0}", speeds[at]))
        };
        let ratio = one.zip(mixed).map(|(one, mixed)| format!("{:.3}", mixed[at] / one[at]));
        let it = mixed.or(one);
        let ours = of.iter().filter_map(|own| Some(format!("{:.1}×", own[at] / it?[at])));
        let ours = ours.collect::<Vec<_>>().join(", ");
        format!("{} | {} | {} | {ours}", shown(one), shown(mixed), ratio.unwrap_or_default())
    };
    println!(
        "| {name} | {rows} | {adapters} | {} | {} | {loaded} | {megabytes} |",
        part(0),
        part(1)
    );
}

fn speeds([prefill, decode]: [f64; 2]) -> Value {
    json!({"prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode})
}

fn name_of_device() -> String {
    let query = ["--query-gpu=name", "--format=csv,noheader"];
    let output = Command::new("nvidia-smi").args(query).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let name = text.ok().and_then(|text| Some(text.lines().next()?.trim().to_owned()));
    name.unwrap_or_else(|| "an unknown GPU".to_owned())
}
