//! Ctrl-C: the first asks for an end after the present step, the second ends at once.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

static ASKED: AtomicBool = AtomicBool::new(false);

pub fn listen() -> Result<()> {
    Ok(ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step; press Ctrl-C again to stop at once");
    })?)
}

pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
