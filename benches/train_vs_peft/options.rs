//! The command line.

use std::path::PathBuf;

use crate::who::Who;

/// Training steps, generation and start-up beside real PEFT.
#[derive(Debug, clap::Parser)]
pub struct Options {
    /// Only rows whose names contain this; may be given several times
    #[arg(long = "rows", alias = "row", value_name = "TEXT")]
    rows: Vec<String>,
    /// Only the contender of this name, or those whose names contain it; may be given several times
    #[arg(long, value_name = "TEXT")]
    who: Vec<String>,
    /// Steps of every contender that count
    #[arg(long, default_value_t = 7)]
    pub pairs: usize,
    /// Ends a row (on a GPU: each contender) early, after three steps that count
    #[arg(long, default_value_t = 180.)]
    pub seconds: f64,
    /// Seconds without an answer after which a contender is given up
    #[arg(long, default_value_t = 900)]
    pub patience: u64,
    /// Without Python
    #[arg(long)]
    pub ours_only: bool,
    /// Without `torch.compile`
    #[arg(long)]
    pub no_compile: bool,
    /// Appends every result to this file as a line of JSON, as soon as it is there
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The folder for models and reports
    #[arg(long, default_value = "target/bench")]
    pub out: PathBuf,
    /// Measures how a step's time and memory grow instead, with a picture
    #[arg(long)]
    pub growth: bool,
    /// The picture of --growth
    #[arg(long, requires = "growth", value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Says which rows there are, and ends
    #[arg(long)]
    pub list: bool,
    /// The work of a child process
    #[arg(long, hide = true)]
    pub child: Option<String>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    pub fn asks_for(&self, name: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|part| name.contains(part.as_str()))
    }

    pub fn take(&self, who: Who) -> bool {
        let is_name = |text: &str| Who::ALL.iter().any(|who| who.name() == text);
        let fits = |text: &String| match is_name(text) {
            true => who.name() == text,
            false => who.name().contains(text),
        };
        let named = self.who.is_empty() || self.who.iter().any(fits);
        named && !(self.ours_only && who.is_python() || self.no_compile && who == Who::Compiled)
    }
}
