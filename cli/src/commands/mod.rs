//! The commands: one per file, each with its flags and its `run`.

mod answers;
mod completions;
mod generate;
mod inspect;
mod key_mapping;
mod merge;
mod plan;
mod train;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use crate::train::ranks::Ranks;

#[derive(Subcommand)]
pub enum Command {
    Train(train::Args),
    Generate(generate::Args),
    Plan(plan::Args),
    Inspect(inspect::Args),
    Merge(merge::Args),
    Verify(verify::Args),
    Completions(completions::Args),
}

impl Command {
    pub fn run(&self) -> Result<ExitCode> {
        // Of several processes that a launcher has started, one is enough.
        let other = Ranks::of_launcher().ok().filter(|ranks| !ranks.is_first());
        if let Some(ranks) = other.filter(|_| !matches!(self, Command::Train(_))) {
            // In a container, the variables may be there without others. torchrun has started the others.
            if std::env::var_os("TORCHELASTIC_RUN_ID").is_none() {
                eprintln!(
                    "RANK is {}: rank 0 does this alone. To do it here, unset RANK and WORLD_SIZE",
                    ranks.rank()
                );
            }
            return Ok(ExitCode::SUCCESS);
        }
        let done = match self {
            Command::Train(args) => train::run(args),
            Command::Generate(args) => generate::run(args),
            Command::Plan(args) => plan::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Merge(args) => merge::run(args),
            Command::Verify(args) => {
                return Ok(if verify::run(args)? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            Command::Completions(args) => completions::run(
                args,
                Command::augment_subcommands(clap::Command::new("ln-tuning")),
            ),
        };
        done.map(|()| ExitCode::SUCCESS)
    }

    /// The exit code of an error. As with `diff`, 1 of `verify` says that there are differences.
    pub fn failure(&self) -> ExitCode {
        ExitCode::from(if let Command::Verify(_) = self { 2 } else { 1 })
    }
}
