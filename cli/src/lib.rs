//! `ln-tuning`: LayerNorm tuning on the command line.
//!
//! Commands stand on the tasks (`language`, `classifier`), these on the trainer (`train`), that on the ground (`text`,
//! `pictures`, `records`, `device`, `progress`, `columns`, `chart`, `one_line`).

mod chart;
mod classifier;
mod columns;
mod commands;
mod device;
#[doc(hidden)]
pub mod language;
mod one_line;
#[doc(hidden)]
pub mod pictures;
mod progress;
mod records;
#[doc(hidden)]
pub mod text;
mod train;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{anyhow, Result};
use clap::Parser;

use commands::Command;
use one_line::one_line;
use train::ranks::SaidElsewhere;

/// LayerNorm tuning: trains the norms of a model, and nothing else.
#[derive(Parser)]
#[command(name = "ln-tuning", version, after_help = EXAMPLE)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLE: &str = "\
Example:
  ln-tuning train --set model=Llama-3.2-1B --set data.train=texts.jsonl --set out=tuned
  ln-tuning generate --model Llama-3.2-1B --adapter mine=tuned/adapter --prompt 'Once upon a time'

Exit codes: 0 success, 1 failure, 2 wrong usage.";

/// Runs the program with these arguments, its name first. Wrong usage is an error too, and every error is one line.
///
/// # Errors
/// Whatever the command refuses.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Result<ExitCode> {
    let program = Program::try_parse_from(args)?;
    program.command.run().map_err(|error| anyhow!(one_line(&error)))
}

/// Runs the command line, prints an error, and gives the exit code.
pub fn main() -> ExitCode {
    let command = Program::parse().command;
    let failure = command.failure();
    match command.run() {
        Ok(code) => code,
        Err(error) => {
            if !error.is::<SaidElsewhere>() {
                eprintln!("error: {}", one_line(&error));
            }
            failure
        }
    }
}
