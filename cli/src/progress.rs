//! Bars for what takes long.

use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use ln_tuning::pretrained::ModelFiles;

/// The steps of a run: loss, tokens per second, memory, time left.
pub fn steps(total: u64, done: u64) -> Result<ProgressBar> {
    let bar = bar(total, "{bar:30} {pos}/{len} {msg} {eta} left")?;
    bar.set_position(done);
    bar.reset_eta();
    bar.enable_steady_tick(Duration::from_millis(500));
    Ok(bar)
}

/// Work that is counted in pieces.
pub fn counted(what: &'static str, total: u64) -> Result<ProgressBar> {
    Ok(bar(total, "{msg} {bar:30} {human_pos}/{human_len} {eta} left")?.with_message(what))
}

/// Files that are read.
pub fn bytes(what: &'static str, total: u64) -> Result<ProgressBar> {
    let style = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
    Ok(bar(total, style)?.with_message(what))
}

/// The bar of a model that is loaded from these files.
pub fn loading(files: ModelFiles) -> Result<(ModelFiles, ProgressBar)> {
    let bar = bytes("loading the model", 0)?;
    let shown = bar.clone();
    let files = files.with_progress(move |done, total| {
        shown.set_length(total);
        shown.set_position(done);
    });
    Ok((files, bar))
}

fn bar(total: u64, style: &str) -> Result<ProgressBar> {
    Ok(ProgressBar::new(total).with_style(ProgressStyle::with_template(style)?))
}
