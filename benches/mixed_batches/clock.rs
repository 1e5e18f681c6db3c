//! Seconds: of the clock on the wall, or of the processors, which count also on a machine that does other work.

use std::sync::OnceLock;
use std::time::Instant;

/// True if `-- cpu` asks for the time of the processors.
pub fn is_of_processors() -> bool {
    static OF_PROCESSORS: OnceLock<bool> = OnceLock::new();
    *OF_PROCESSORS.get_or_init(|| crate::has("cpu"))
}

/// Seconds since some point of time.
pub fn now() -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    if is_of_processors() {
        return of_threads();
    }
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

/// The seconds that all threads of this process have run; 0 where Linux's `/proc` is not.
fn of_threads() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanoseconds = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}
