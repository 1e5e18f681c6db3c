//! Ctrl-C, and SIGTERM of launchers and schedulers. While steps are made, the first asks for an end after the present
//! one, and the second ends the process at once. Before there are steps, there is nothing to save: the first ends it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::Result;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::exit;

use crate::progress;

static ASKED: AtomicBool = AtomicBool::new(false);
static FAILED: Mutex<Option<String>> = Mutex::new(None);
static STEPPING: AtomicBool = AtomicBool::new(false);

pub fn listen() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let again = ASKED.swap(true, Ordering::SeqCst);
            if !STEPPING.load(Ordering::SeqCst) {
                progress::warn("\nstopped; no step was cut off");
                exit(128 + signal);
            }
            if again {
                exit(128 + signal);
            }
            progress::warn("\nstopping after this step; press Ctrl-C again to stop at once");
        }
    })?;
    Ok(())
}

/// Ends the run as a signal does, with this error: at once, or after the present step.
#[cfg(distributed)]
pub fn fail(error: String) {
    *FAILED.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
    if !STEPPING.load(Ordering::SeqCst) {
        eprintln!("error: {error}");
        exit(1);
    }
    ASKED.store(true, Ordering::SeqCst);
}

/// The error with which the run was asked to end.
pub fn failed() -> Option<String> {
    FAILED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Steps are made as long as this is there.
pub struct Steps;

impl Steps {
    pub fn begin() -> Self {
        STEPPING.store(true, Ordering::SeqCst);
        Steps
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        STEPPING.store(false, Ordering::SeqCst);
    }
}

pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
