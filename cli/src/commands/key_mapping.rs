//! The flag that renames an adapter's keys.

use anyhow::{ensure, Context, Result};
use ln_tuning::LoadOptions;

#[derive(clap::Args)]
pub struct KeyMapping {
    /// Rename the adapter's keys (without `base_model.model.`): a regular expression and its replacement, as in Python;
    /// may be given many times, the first that matches a key counts
    #[arg(long = "key-mapping", value_name = "PATTERN=REPLACEMENT", value_parser = rule)]
    pub rules: Vec<(String, String)>,
}

impl KeyMapping {
    /// Refuses rules where there is no adapter.
    pub fn check(&self, has_adapter: bool) -> Result<()> {
        ensure!(
            has_adapter || self.rules.is_empty(),
            "--key-mapping renames keys of an adapter: give --adapter too"
        );
        Ok(())
    }

    pub fn load_options(&self) -> LoadOptions {
        LoadOptions::default().key_mapping(self.rules.clone())
    }
}

/// A pattern may hold a `=` itself, as in `(?=…)`.
fn rule(text: &str) -> Result<(String, String)> {
    let (pattern, replacement) =
        text.rsplit_once('=').context("expected a pattern, '=' and a replacement")?;
    Ok((pattern.to_owned(), replacement.to_owned()))
}
