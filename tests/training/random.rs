//! Turns at libtorch's random numbers.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Random numbers are those of the process, so that tests that draw must not run beside each other.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    tch::set_num_threads(1);
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
