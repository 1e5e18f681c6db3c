//! Damaged files for `ln-tuning`: whatever they hold, nothing may panic, hang, fill memory or answer at length.
//!
//! Each target runs in a process of its own (`worker`), which the main process watches (`watch`). A worker makes valid
//! files, damages them (`damage`) and hands them to the code under test (`targets`), round after round.

mod damage;
mod files;
mod targets;
mod watch;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

/// Tries damaged files on every part of ln-tuning that reads files
#[derive(Parser)]
struct Args {
    /// The minutes to run, all targets together
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Rounds of each target, instead of a time
    #[arg(long, conflicts_with = "minutes")]
    rounds: Option<u64>,
    /// The same seed makes the same files
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// These targets only
    #[arg(long = "target", value_name = "NAME")]
    targets: Vec<String>,
    /// The longest time that a round may take, in seconds
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// The most memory that a target may take, in MiB
    #[arg(long, default_value_t = 3072)]
    memory: u64,
    /// Findings are saved here, with the files that show them
    #[arg(long, default_value = "target/fuzz")]
    out: PathBuf,
    /// Run the files of a finding again, and nothing else
    #[arg(long, value_name = "FINDING")]
    input: Option<PathBuf>,
    /// Work for the process that watches
    #[arg(long, hide = true, num_args = 2, value_names = ["TARGET", "FIRST"])]
    worker: Option<Vec<String>>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let Some(worker) = &args.worker {
        worker::run(&worker[0], worker[1].parse()?, args.seed, &args.out)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(finding) = &args.input {
        return Ok(if worker::again(finding)? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let names: Vec<&str> = if args.targets.is_empty() {
        targets::NAMES.to_vec()
    } else {
        args.targets.iter().map(String::as_str).collect()
    };
    let time = Duration::from_secs_f64(args.minutes * 60.0 / names.len() as f64);
    let limits = watch::Limits {
        until: args.rounds.map_or(watch::Until::Time(time), watch::Until::Rounds),
        round: Duration::from_secs_f64(args.seconds),
        memory: args.memory << 20,
    };
    let mut results = Vec::new();
    for name in names {
        results.push(watch::target(name, args.seed, &limits, &args.out)?);
    }
    print!("{}", watch::table(&results));
    let findings: Vec<&String> = results.iter().flat_map(|result| &result.findings).collect();
    for finding in &findings {
        eprintln!("finding: {finding}");
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
