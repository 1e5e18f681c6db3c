//! A batch whose rows use different adapters: rows × resident adapters, decode and prefill, beside one adapter for all
//! rows and beside PEFT's LoRA with `adapter_names`.
//!
//! `cargo bench --bench mixed_batches`: about five minutes. `-- quick` shows in half a minute that it works;
//! `-- ours-only` does without Python. All run alternately on one machine with the same number of threads; printed are
//! medians. target/bench/mixed_batches.json and .svg hold the same.

#[path = "../place/mod.rs"]
mod place;

mod ours;
mod peft;
mod picture;

use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use serde_json::{json, Value};

const THREADS: i32 = 2;

/// Hidden size, size of the MLP, layers, heads, heads of keys, vocabulary.
pub const SHAPE: [i64; 6] = [512, 1408, 4, 8, 4, 4096];

/// Tokens that are generated: the first by the prefill, each of the others by a step of decoding.
pub const NEW: i64 = 5;

/// The most adapters that PEFT gets: it takes 0.3 s and more to add one where there are a thousand.
const MOST_OF_PEFT: usize = 16;

/// Seconds of one call.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub prefill: f64,
    pub decode: f64,
}

/// The adapters of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mix {
    /// One for all, as `set_adapter` has it.
    One,
    /// Each resident adapter in turn.
    Each(usize),
}

/// Medians in seconds: one adapter for all rows and one for each, here and with PEFT.
pub struct Row {
    pub rows: i64,
    pub adapters: usize,
    pub length: i64,
    pub one: Times,
    pub each: Times,
    pub peft: Option<[Times; 2]>,
}

fn main() -> Result<()> {
    // Threads that wait by spinning would take the cores from the other side. libgomp reads this when it is loaded.
    if std::env::var_os("OMP_WAIT_POLICY").is_none() {
        let mut again = Command::new(std::env::current_exe()?);
        again.args(std::env::args_os().skip(1)).env("OMP_WAIT_POLICY", "passive");
        std::process::exit(again.status()?.code().unwrap_or(1));
    }
    tch::set_num_threads(THREADS);
    let start = Instant::now();
    let has = |word: &str| std::env::args().any(|argument| argument.trim_matches('-') == word);
    let quick = has("quick");
    let (batches, resident): (&[i64], &[usize]) =
        if quick { (&[8, 32], &[1, 16, 64]) } else { (&[8, 64, 512], &[1, 16, 256, 1024]) };
    let mut peft = if has("ours-only") { None } else { Some(peft::Peft::start(THREADS)?) };
    let mut ours = ours::Ours::new()?;
    println!(
        "a llama of {} layers, {} wide, f32, {THREADS} threads; LN adapters of {} weights here, LoRA (r = 8, queries and \
         values) with PEFT; tokens a second",
        SHAPE[2],
        SHAPE[0],
        ours.weights()
    );
    println!(
        "{:>5} {:>9} {:>10}{:>10}{:>7} {:>10}{:>10}{:>7} {:>10}{:>8} {:>10}{:>8}",
        "rows",
        "adapters",
        "prefill",
        "mixed",
        "ratio",
        "decode",
        "mixed",
        "ratio",
        "PEFT pre",
        "ours",
        "PEFT dec",
        "ours"
    );
    let (mut all, mut memory): (Vec<Row>, Vec<Value>) = Default::default();
    for adapters in resident {
        let before = rss()?;
        ours.grow(*adapters)?;
        if let Some(peft) = peft.as_mut().filter(|_| *adapters <= MOST_OF_PEFT) {
            peft.grow(*adapters)?;
        }
        for rows in batches {
            // About as many tokens in all, within what texts have.
            let length = (2048 / rows).clamp(4, 64);
            let few = if quick || *rows > 64 { 3 } else { 5 };
            let asked = Asked { rows: *rows, length, adapters: *adapters, rounds: few };
            let row = measured(&asked, &mut ours, &mut peft)?;
            print(&row);
            all.push(row);
        }
        memory.push(json!({"adapters": adapters, "grown_mb": (rss()? - before) as f64 / 1e6}));
    }
    let one = ours.weights() as f64 * 4. / 1e3;
    println!(
        "an adapter takes {one:.0} kB, and as much again in the buffer that rows are taken from; {} of them: {:.0} MB",
        resident[resident.len() - 1],
        2. * one * resident[resident.len() - 1] as f64 / 1e3
    );
    println!("{:.0} s in all", start.elapsed().as_secs_f64());
    let (folder, of) = (place::reports()?, all.iter().map(json_of).collect::<Vec<_>>());
    let path = folder.join("mixed_batches.json");
    let report = json!({"threads": THREADS, "shape": SHAPE, "rows": of, "memory": memory});
    std::fs::write(&path, format!("{report:#}\n"))?;
    let svg = folder.join("mixed_batches.svg");
    picture::draw(&svg, batches, resident, &all)?;
    println!("written to {} and {}", path.display(), svg.display());
    Ok(())
}

struct Asked {
    rows: i64,
    length: i64,
    adapters: usize,
    rounds: usize,
}

fn measured(asked: &Asked, ours: &mut ours::Ours, peft: &mut Option<peft::Peft>) -> Result<Row> {
    let &Asked { rows, length, adapters, rounds } = asked;
    let mixes = [Mix::One, Mix::Each(adapters)];
    let mut times: [Vec<Times>; 4] = Default::default();
    for round in 0..=rounds {
        let mut found = Vec::new();
        for mix in mixes {
            found.push(Some(ours.time(rows, length, mix)?));
        }
        let peft = peft.as_mut().filter(|_| adapters <= MOST_OF_PEFT);
        match peft {
            Some(peft) => {
                for mix in mixes {
                    found.push(Some(peft.time(rows, length, mix)?));
                }
            }
            None => found.extend([None, None]),
        }
        // The first warms up.
        if round > 0 {
            times.iter_mut().zip(found).for_each(|(all, found)| all.extend(found));
        }
    }
    let [one, each, theirs, their_each] = times.map(|times| median(&times));
    let none = || anyhow::anyhow!("nothing was measured");
    Ok(Row {
        rows,
        adapters,
        length,
        one: one.ok_or_else(none)?,
        each: each.ok_or_else(none)?,
        peft: theirs.zip(their_each).map(|(one, each)| [one, each]),
    })
}

fn median(times: &[Times]) -> Option<Times> {
    let of = |quantity: fn(&Times) -> f64| {
        let mut values: Vec<f64> = times.iter().map(quantity).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    Some(Times { prefill: of(|t| t.prefill)?, decode: of(|t| t.decode)? })
}

impl Row {
    /// Tokens a second: those of the prompts, and those that follow the first new one.
    pub fn speeds(&self, times: Times) -> [f64; 2] {
        let rows = self.rows as f64;
        [rows * self.length as f64 / times.prefill, rows * (NEW - 1) as f64 / times.decode]
    }
}

fn print(row: &Row) {
    let ([prefill, decode], mixed) = (row.speeds(row.one), row.speeds(row.each));
    let peft = row.peft.map(|[_, each]| row.speeds(each));
    let theirs = |at: usize| match peft {
        Some(speeds) => format!("{:>10.0}{:>7.1}x", speeds[at], mixed[at] / speeds[at]),
        None => format!("{:>10}{:>8}", "–", "–"),
    };
    println!(
        "{:>5} {:>9} {prefill:>10.0}{:>10.0}{:>7.3} {decode:>10.0}{:>10.0}{:>7.3} {} {}",
        row.rows,
        row.adapters,
        mixed[0],
        mixed[0] / prefill,
        mixed[1],
        mixed[1] / decode,
        theirs(0),
        theirs(1)
    );
}

fn json_of(row: &Row) -> Value {
    let of = |times: Times| {
        let [prefill, decode] = row.speeds(times);
        json!({"prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode})
    };
    json!({
        "rows": row.rows, "adapters": row.adapters, "length": row.length, "one": of(row.one), "mixed": of(row.each),
        "peft_one": row.peft.map(|[one, _]| of(one)), "peft_mixed": row.peft.map(|[_, each]| of(each)),
    })
}

/// Memory of this process in bytes.
fn rss() -> Result<i64> {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    Ok(pages.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok()).unwrap_or(0) * 4096)
}
