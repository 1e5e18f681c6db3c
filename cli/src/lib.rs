//! `ln-tuning`: LayerNorm tuning on the command line.
//!
//! Commands stand on the tasks (`language`, `classifier`), these on the trainer (`train`), that on the ground (`text`,
//! `pictures`, `records`, `device`, `progress`, `columns`, `chart`).

mod chart;
mod classifier;
mod columns;
mod commands;
mod device;
#[doc(hidden)]
pub mod language;
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
use records::shortened;

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
            eprintln!("error: {}", one_line(&error));
            failure
        }
    }
}

/// The error and its causes, without the frames of C++ that libtorch adds, and without the end of what is very long: a
/// file's text may be in it.
fn one_line(error: &anyhow::Error) -> String {
    const MOST: usize = 2000;
    let causes = error.chain().map(|cause| {
        let text = cause.to_string();
        let text = text.split("\nException raised from").next().unwrap_or(&text);
        let text = text.split('\n').map(str::trim).collect::<Vec<_>>().join(" ");
        shortened(text.trim(), MOST).into_owned()
    });
    causes.collect::<Vec<_>>().join(": ")
}
