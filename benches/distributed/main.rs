//! Data-parallel training on one machine, one thread for each rank: the time of a step with one, two and four ranks
//! beside PEFT under torch's DDP, the all-reduce beside that of Python, and the memory of two ranks beside one.
//!
//! `cargo bench --features distributed --bench distributed`, or `make distributed-bench`: about six minutes; `-- quick`
//! shows in half a minute that it works. Every process starts this program again, or benches/distributed.py, with the
//! variables of a launcher. The picture is docs/distributed.svg, or target/bench/distributed.svg of a quick run.

mod picture;
#[path = "../place/mod.rs"]
mod place;
mod rank;

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{ensure, Context, Result};
use picture::Row;
use serde_json::Value;

/// Bytes of an all-reduce: the norms of half of a 3B model, those of an 8B model, and what full fine-tuning would send.
const SIZES: [usize; 3] = [350_000, 1_400_000, 100_000_000];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["rank", "steps", dir, rounds] => rank::steps(Path::new(dir), rounds.parse()?),
        ["rank", "memory", dir] => rank::memory(Path::new(dir)),
        ["rank", "all_reduce"] => rank::all_reduce(),
        [] => compare(9, 3, &place::data().join("docs/distributed.svg")),
        ["quick"] => compare(1, 1, &place::reports()?.join("distributed.svg")),
        _ => anyhow::bail!("expected no argument, or 'quick'"),
    }
}

fn compare(rounds: usize, turns: usize, picture: &Path) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("distributed-").tempdir_in(".")?;
    let bytes = rank::write(dir.path())?;
    println!(
        "a llama of {:.0} MB in f32; {} x {} tokens for each rank",
        bytes as f64 / 1e6,
        rank::ROWS,
        rank::LENGTH
    );
    let dir = dir.path().to_str().context("the directory's name is not in UTF-8")?;
    steps(dir, &rounds.to_string(), picture)?;

    let (mut own, mut python) = (Vec::new(), Vec::new());
    let sizes = SIZES.map(|size| size.to_string());
    let theirs = theirs(&[&["all_reduce"][..], &sizes.each_ref().map(String::as_str)].concat());
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

/// Steps of one, two and four ranks, and of PEFT under DDP.
fn steps(dir: &str, rounds: &str, picture: &Path) -> Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    let mut rows: Vec<Row> = Vec::new();
    println!("\n| ranks | ours, ms | with idle cores | ranks that do not know each other | efficiency | of those | PEFT under DDP, ms | ÷ ours |");
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
    for world in [2, 4] {
        let own = ranks(&ours(&["steps", dir, rounds])?, world)?.remove(0);
        let python = ranks(&theirs(&["steps", dir, rounds]), world)?.remove(0);
        let ms = |found: &Value, name: &str| number(&found[name]["ms"]);
        let (alone, beside) = (ms(&own, rank::ALONE)?, ms(&own, rank::BESIDE)?);
        let row = |ranks: usize, name: &str| -> Result<Row> {
            Ok(Row { ranks, ours: ms(&own, name)?, ddp: ms(&python, name)? })
        };
        if rows.is_empty() {
            let one = row(1, rank::ALONE)?;
            println!(
                "| 1 | {:.1} | | | | | {:.1} | {:.2} |",
                one.ours,
                one.ddp,
                one.ddp / one.ours
            );
            rows.push(one);
        }
        let all = row(world, rank::REDUCED)?;
        // Ranks that share a core take turns.
        let ideal = alone * (world as f64 / cores as f64).max(1.);
        println!(
            "| {world} | {:.1} | {alone:.1} | {beside:.1} | {:.3} | {:.3} | {:.1} | {:.2} |",
            all.ours,
            ideal / all.ours,
            beside / all.ours,
            all.ddp,
            all.ddp / all.ours
        );
        rows.push(all);
    }
    picture::draw(picture, cores, &rows)?;
    println!("written to {}", picture.display());
    Ok(())
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().context("not a number")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// benches/distributed.py as a rank.
fn theirs(words: &[&str]) -> Vec<std::ffi::OsString> {
    let script = place::data().join("benches/distributed.py").into_os_string();
    let words = words.iter().map(Into::into);
    [place::python().into_os_string(), script].into_iter().chain(words).collect()
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
