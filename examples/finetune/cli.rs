//! The command line of both examples.

use std::path::PathBuf;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser};
use serde::de::DeserializeOwned;
use serde::Serialize;

use super::yaml;

#[derive(Parser)]
struct Args {
    /// The settings; a sample.yaml beside the example's source explains them all
    #[arg(long)]
    config: PathBuf,
    /// Sets one of them, with dots between levels: --set optimizer.lr=1e-4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Prints all settings as they would be used, and ends
    #[arg(long)]
    show: bool,
}

/// The settings that are asked for; `None` if they were only to be shown.
pub fn settings<S>(about: &'static str) -> Result<Option<S>>
where
    S: Default + Serialize + DeserializeOwned,
{
    let args = Args::from_arg_matches(&Args::command().about(about).get_matches())?;
    let settings: S = yaml::read(&args.config, &args.set)?;
    if args.show {
        print!("{}", serde_yaml::to_string(&settings)?);
        return Ok(None);
    }
    Ok(Some(settings))
}
