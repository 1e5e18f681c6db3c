//! Ctrl-C: the first asks for an end behind the present step, the second ends at once.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

static ASKED: AtomicBool = AtomicBool::new(false);

pub fn listen() -> Result<()> {
    Ok(ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("\nstopping behind this step; once more to stop at once");
    })?)
}

pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
