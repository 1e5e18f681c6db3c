//! Lines for people, and bars for what takes long.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ln_tuning::pretrained::ModelFiles;

/// Another process of the run speaks for all.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Leaves lines, warnings and bars to another process.
pub fn be_quiet() {
    QUIET.store(true, Ordering::SeqCst);
}

pub fn is_quiet() -> bool {
    QUIET.load(Ordering::SeqCst)
}

/// A line on the standard output.
pub fn say(line: impl Display) {
    if !is_quiet() {
        println!("{line}");
    }
}

/// A line on the error output.
pub fn warn(line: impl Display) {
    if !is_quiet() {
        eprintln!("{line}");
    }
}

/// The steps of a run: loss, tokens per second, memory, time left.
pub fn steps(total: u64, done: u64) -> Result<ProgressBar> {
    let bar = bar(total, "{bar:30} {pos}/{len} {msg} {eta} left")?;
    bar.set_position(done);
    bar.reset_eta();
    bar.enable_steady_tick(Duration::from_millis(500));
    Ok(bar)
}

/// Seconds between two lines where there is no terminal for a bar, such as in a job's log.
pub const REPEAT: u64 = 30;

/// Work that is counted in pieces.
pub fn counted(what: &'static str, total: u64) -> Result<Counted> {
    let bar = bar(total, "{msg} {bar:30} {human_pos}/{human_len} {eta} left")?.with_message(what);
    Ok(Counted { bar, what, every: Duration::from_secs(REPEAT), said: Mutex::new(Instant::now()) })
}

/// A bar; without a terminal, a line on the error output now and then.
pub struct Counted {
    bar: ProgressBar,
    what: &'static str,
    every: Duration,
    said: Mutex<Instant>,
}

impl Counted {
    pub fn inc(&self, done: u64) {
        self.bar.inc(done);
        if let Some(line) = self.bar.is_hidden().then(|| self.line()).flatten() {
            warn(line);
        }
    }

    pub fn set_length(&self, total: u64) {
        self.bar.set_length(total);
    }

    pub fn finish_and_clear(&self) {
        self.bar.finish_and_clear();
    }

    /// A line, if it is time for one.
    fn line(&self) -> Option<String> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.elapsed() < self.every {
            return None;
        }
        *said = Instant::now();
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or_default());
        let of = if total > 0 { format!(" of {total}") } else { String::new() };
        Some(format!("{}: {done}{of}", self.what))
    }
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
    let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(style)?);
    if is_quiet() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    Ok(bar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_without_a_bar_says_now_and_then_how_far_it_is() {
        let mut work = counted("evaluating", 7).unwrap();
        work.bar.inc(2);
        assert_eq!(work.line(), None);
        work.every = Duration::ZERO;
        assert_eq!(work.line().as_deref(), Some("evaluating: 2 of 7"));
    }
}
