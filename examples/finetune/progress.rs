//! Bars for what takes long.

use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// Of the run: steps, loss, tokens per second, time left, memory.
pub fn steps(total: u64, done: u64) -> Result<ProgressBar> {
    let style = "{bar:30} {pos}/{len} {msg} {eta} left";
    let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(style)?);
    bar.set_position(done);
    bar.reset_eta();
    bar.enable_steady_tick(Duration::from_millis(500));
    Ok(bar)
}

/// Of work that is counted in `unit`s.
pub fn counted(what: &'static str, total: u64) -> Result<ProgressBar> {
    let style = "{msg} {bar:30} {human_pos}/{human_len} {eta} left";
    let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(style)?);
    Ok(bar.with_message(what))
}

/// Of files that are read.
pub fn bytes(what: &'static str, total: u64) -> Result<ProgressBar> {
    let style = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
    let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(style)?);
    Ok(bar.with_message(what))
}
