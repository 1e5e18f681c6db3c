//! `ln-tuning`: LayerNorm tuning on the command line.
//!
//! Commands stand on the tasks (`language`, `classifier`), these on the trainer (`train`), that on the ground (`text`,
//! `records`, `device`, `progress`, `columns`).

mod classifier;
mod columns;
mod commands;
mod device;
mod language;
mod progress;
mod records;
mod text;
mod train;

use std::process::ExitCode;

use clap::Parser;

use commands::Command;

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

fn main() -> ExitCode {
    // `ln-tuning … | head` ends quietly, as other programs do.
    sigpipe::reset();
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

/// The error and its causes, without the frames of C++ that libtorch adds.
fn one_line(error: &anyhow::Error) -> String {
    let causes = error.chain().map(|cause| {
        let text = cause.to_string();
        let text = text.split("\nException raised from").next().unwrap_or(&text);
        text.split('\n').map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
    });
    causes.collect::<Vec<_>>().join(": ")
}
