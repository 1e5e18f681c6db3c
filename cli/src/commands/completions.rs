//! Completions for shells.

use std::io::Write;

use anyhow::Result;
use clap_complete::Shell;

/// Print a script that completes the commands and flags in a shell
#[derive(clap::Args)]
#[command(after_help = "Example:\n  source <(ln-tuning completions bash)")]
pub struct Args {
    shell: Shell,
}

pub fn run(args: &Args, mut program: clap::Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "ln-tuning", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}
