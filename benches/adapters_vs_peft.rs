//! Operations on adapters beside PEFT's, on the shapes of Llama-3.2-3B: 28 layers, 57 norms of 3,072, bf16.
//!
//! `cargo bench --bench adapters_vs_peft` runs both alternately on the same machine with the same number of threads,
//! and prints the median of each operation and their ratio; target/bench/adapters.json holds the same. Frozen weights
//! are tiny, as no operation on adapters touches them. `-- --ours-only` does without Python.

mod place;
mod shapes;

use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use ln_tuning::{LnTuningModel, LoadOptions, SaveOptions};
use serde_json::json;
use shapes::{base, config};
use tch::nn::VarStore;

const THREADS: i32 = 2;

/// The Python process with PEFT: a line in, a time in milliseconds out.
struct Peft {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Peft {
    fn start() -> Result<(Peft, f64)> {
        let python = place::python();
        let mut child = Command::new(&python)
            .arg(place::data().join("benches/peft_adapters.py"))
            .arg(THREADS.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| {
                format!("cannot start '{}': run `make setup-tests`", python.display())
            })?;
        let answers = BufReader::new(child.stdout.take().context("no output")?);
        let mut peft = Peft { child, answers };
        let imported = peft.answer()?.parse()?;
        Ok((peft, imported))
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "the Python process ended: {:?}", self.child.wait()?);
        Ok(line.trim().to_owned())
    }

    fn ask(&mut self, operation: &str) -> Result<String> {
        let input = self.child.stdin.as_mut().context("no input")?;
        writeln!(input, "{operation}")?;
        self.answer()
    }
}

struct Ours {
    vs: VarStore,
    tuned: Option<LnTuningModel>,
    resident: usize,
    turn: usize,
    dir: tempfile::TempDir,
}

impl Ours {
    fn new() -> Result<Ours> {
        let vs = base();
        let tuned = Some(LnTuningModel::new(&vs, config())?);
        Ok(Ours { vs, tuned, resident: 1, turn: 0, dir: tempfile::tempdir()? })
    }

    fn tuned(&mut self) -> &mut LnTuningModel {
        self.tuned.as_mut().expect("attached")
    }

    fn grow(&mut self, wanted: usize) -> Result<()> {
        while self.resident < wanted {
            let name = format!("a{}", self.resident);
            self.tuned().add_adapter(&name, config())?;
            self.resident += 1;
        }
        Ok(())
    }

    /// Milliseconds of one operation; what is not part of it is done before and after the clock.
    fn time(&mut self, operation: &str) -> Result<f64> {
        let milliseconds = |start: Instant| start.elapsed().as_secs_f64() * 1e3;
        let took;
        match operation {
            "attach" => {
                let vs = base();
                let start = Instant::now();
                let tuned = LnTuningModel::new(&vs, config())?;
                took = milliseconds(start);
                black_box(tuned).unload()?;
            }
            "add" => {
                let tuned = self.tuned();
                let start = Instant::now();
                tuned.add_adapter("extra", config())?;
                took = milliseconds(start);
                tuned.delete_adapter("extra")?;
            }
            "switch" => {
                self.turn += 1;
                let name = if self.turn.is_multiple_of(2) { "a1" } else { "default" };
                let start = Instant::now();
                self.tuned().set_adapter(name)?;
                took = milliseconds(start);
            }
            "disable" => {
                let tuned = self.tuned();
                let start = Instant::now();
                drop(tuned.disable()?);
                took = milliseconds(start);
            }
            "merge" => {
                let tuned = self.tuned();
                tuned.set_adapter("default")?;
                let start = Instant::now();
                tuned.merge_adapter("default")?;
                tuned.unmerge_adapter()?;
                took = milliseconds(start);
            }
            "save" => {
                let (dir, options) = (self.dir.path().to_owned(), SaveOptions::default());
                let options = options.selected_adapters(["default"]);
                let start = Instant::now();
                self.tuned().save_pretrained_with(&dir, &options)?;
                took = milliseconds(start);
            }
            "load" => {
                let dir = self.dir.path().to_owned();
                let options = LoadOptions::default().is_trainable(true);
                let tuned = self.tuned();
                let start = Instant::now();
                tuned.load_adapter(&dir, "loaded", &options)?;
                took = milliseconds(start);
                tuned.delete_adapter("loaded")?;
            }
            other => anyhow::bail!("unknown operation {other}"),
        }
        Ok(took)
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
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
    let alone = std::env::args().any(|argument| argument == "--ours-only");
    let mut peft = if alone { None } else { Some(Peft::start()?) };
    let mut ours = Ours::new()?;
    println!("{} variables, {THREADS} threads; medians in milliseconds", ours.vs.variables().len());
    println!("{:<28} {:>10} {:>10} {:>8} {:>6}", "", "ours", "PEFT", "ratio", "pairs");
    let mut rows = Vec::new();
    // (what it is called, adapters resident, operation, pairs)
    for (name, resident, operation, pairs) in [
        ("attach", 1, "attach", 15),
        ("add", 1, "add", 15),
        ("save, fsync included", 1, "save", 15),
        ("load", 1, "load", 15),
        ("switch, 2 resident", 2, "switch", 41),
        ("disable + enable", 2, "disable", 41),
        ("merge + unmerge", 2, "merge", 41),
        ("switch, 55 resident", 55, "switch", 21),
        ("switch, 1000 resident", 1000, "switch", 11),
    ] {
        ours.grow(resident)?;
        if let Some((peft, _)) = &mut peft {
            peft.ask(&format!("resident {resident}"))?;
        }
        let (mut own, mut theirs) = (Vec::new(), Vec::new());
        for pair in 0..pairs + 2 {
            let time = ours.time(operation)?;
            let other = match &mut peft {
                Some((peft, _)) => Some(peft.ask(operation)?.parse::<f64>()?),
                None => None,
            };
            // The first two warm up.
            if pair >= 2 {
                own.push(time);
                theirs.extend(other);
            }
        }
        let own = median(own);
        if theirs.is_empty() {
            println!("{name:<28} {own:>10.4} {:>10} {:>8} {pairs:>6}", "–", "–");
            rows.push(json!({"name": name, "ours_ms": own}));
        } else {
            let theirs = median(theirs);
            println!("{name:<28} {own:>10.4} {theirs:>10.4} {:>7.1}x {pairs:>6}", theirs / own);
            rows.push(
                json!({"name": name, "ours_ms": own, "peft_ms": theirs, "ratio": theirs / own}),
            );
        }
    }
    if let Some((_, imported)) = &peft {
        println!("importing PEFT took {:.1} s", imported / 1e3);
    }
    println!("{:.0} s in all", start.elapsed().as_secs_f64());
    let path = place::reports()?.join("adapters.json");
    std::fs::write(&path, format!("{:#}\n", json!({"threads": THREADS, "rows": rows})))?;
    println!("written to {}", path.display());
    Ok(())
}
