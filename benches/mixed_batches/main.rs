//! A batch whose rows use different adapters: rows × resident adapters, decode and prefill, beside one adapter for all
//! rows and beside PEFT's LoRA with `adapter_names`.
//!
//! `cargo bench --bench mixed_batches --features kernels`: about a quarter of an hour. `-- quick` shows in a minute that it works;
//! `-- ours-only` does without Python; `-- growth` and `-- beside` make one half, `-- beside deep` that of the deeper model; `-- cpu`
//! counts the time of processors, on a machine that does other work. All run alternately on one machine with
//! the same number of threads; printed are medians. target/bench/mixed_batches.json and .svg hold the same, or those in
//! the folder of `-- --out FOLDER`.
//!
//! `-- cuda` measures on a GPU instead, in Llama-3.2-3B's shape (`-- cuda quick`: in a small one), within 100 s.
//!
//! A copy of the program finds its files by `LN_TUNING_DATA` (a folder with benches/peft_mixed_batches.py) and
//! `LN_TUNING_PYTHON`.

#[path = "../place/mod.rs"]
mod place;

mod beside;
mod clock;
mod cuda;
mod growth;
mod ours;
mod peft;
mod picture;
mod task;

use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use task::new_tokens;

const THREADS: i32 = 2;

/// Seconds of one call.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub prefill: f64,
    pub decode: f64,
}

impl Times {
    /// Tokens a second: those of the prompts, and those that follow the first new one.
    pub fn speeds(self, rows: i64, length: i64) -> [f64; 2] {
        let decoded = rows * (new_tokens(rows) - 1);
        [(rows * length) as f64 / self.prefill, decoded as f64 / self.decode]
    }
}

/// The adapters of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mix {
    /// None.
    Base,
    /// One for all, as `set_adapter` has it.
    One,
    /// So many of those that are resident, in turn.
    Each(usize),
}

/// One of those that are compared.
pub trait Side {
    /// Rows of prompts of this length are continued.
    fn time(&mut self, rows: i64, length: i64, mix: Mix) -> Result<Times>;
}

/// True if this word stands on the command line.
pub fn has(word: &str) -> bool {
    std::env::args().any(|argument| argument.trim_matches('-') == word)
}

fn main() -> Result<()> {
    // Threads that wait by spinning would take the cores from the other side. libgomp reads this when it is loaded.
    if std::env::var_os("OMP_WAIT_POLICY").is_none() {
        let mut again = Command::new(std::env::current_exe()?);
        again.args(std::env::args_os().skip(1)).env("OMP_WAIT_POLICY", "passive");
        std::process::exit(again.status()?.code().unwrap_or(1));
    }
    let start = Instant::now();
    let (quick, ours_only) = (has("quick"), has("ours-only"));
    if has("cuda") {
        return cuda::measure(quick, ours_only, start);
    }
    tch::set_num_threads(THREADS);
    let kernels = cfg!(feature = "kernels");
    println!(
        "{THREADS} threads, feature `kernels` {}{}",
        if kernels { "on" } else { "off" },
        if clock::is_of_processors() { "; seconds of processors" } else { "" }
    );
    let (batches, resident): (&[i64], &[usize]) =
        if quick { (&[8, 32], &[1, 16, 64]) } else { (&[8, 64, 512], &[1, 16, 256, 1024]) };
    let folder = place::reports()?;
    let mut report = json!({"threads": THREADS, "kernels": kernels});
    let rounds = if quick { 2 } else { 5 };
    if !has("beside") {
        let (rows, growth) = growth::measure(batches, resident, rounds, !ours_only)?;
        report["growth"] = growth;
        let svg = folder.join("mixed_batches.svg");
        picture::draw(&svg, batches, resident, &rows)?;
        println!("drawn in {}", svg.display());
    }
    if !has("growth") && !ours_only {
        report["beside"] = beside::measure(quick, has("deep"), rounds)?;
    }
    println!("\n{:.0} s in all", start.elapsed().as_secs_f64());
    let path = folder.join("mixed_batches.json");
    std::fs::write(&path, format!("{report:#}\n"))?;
    println!("written to {}", path.display());
    Ok(())
}

/// The medians of the sides, which are asked one after the other, `rounds` times, there and back. The first round warms up.
/// After `until`, one round that counts is the last.
pub fn medians(
    sides: &mut [&mut dyn Side],
    asked: &[(usize, Mix)],
    (rows, length): (i64, i64),
    rounds: usize,
    until: Option<Instant>,
) -> Result<Vec<Times>> {
    let mut times: Vec<Vec<Times>> = vec![Vec::new(); asked.len()];
    for round in 0..=rounds {
        if round > 1 && until.is_some_and(|until| Instant::now() > until) {
            break;
        }
        let mut order: Vec<usize> = (0..asked.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let (side, mix) = asked[at];
            let found = sides[side].time(rows, length, mix)?;
            if round > 0 {
                times[at].push(found);
            }
        }
    }
    let median = |of: fn(&Times) -> f64, times: &[Times]| {
        let mut values: Vec<f64> = times.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let both = |times: Vec<Times>| Times {
        prefill: median(|times| times.prefill, &times),
        decode: median(|times| times.decode, &times),
    };
    Ok(times.into_iter().map(both).collect())
}
