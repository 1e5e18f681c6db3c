//! Work that ends in time, or is left behind.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::error::{refuse, Result};

/// The time beyond its own deadline that work is given to give an error of its own.
const GRACE: Duration = Duration::from_millis(500);

/// Runs `work` in a thread of its own. If it does not end in time, the thread is left behind: c10d waits for ever for a
/// listener that says nothing.
pub(super) fn within<T: Send + 'static>(
    time: Duration,
    late: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::Builder::new().name("ln-tuning c10d".into());
    // Nobody listens any more if the time is over.
    let spawned = thread.spawn(move || drop(sender.send(work())));
    if let Err(error) = spawned {
        refuse!(Distributed, "the system gives no thread to connect with: {error}");
    }
    match receiver.recv_timeout(time.saturating_add(GRACE)) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            refuse!(Distributed, "{late}, and {:.1} s have passed", time.as_secs_f64())
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            refuse!(Distributed, "{late}: the thread that connects has panicked")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_that_does_not_end_is_left_behind() {
        let begun = Instant::now();
        let error = within(Duration::from_millis(1), "nobody answers", || {
            thread::sleep(Duration::from_secs(60));
            Ok(())
        });
        assert_eq!(error.unwrap_err().to_string(), "nobody answers, and 0.0 s have passed");
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert_eq!(within(Duration::from_secs(60), "", || Ok(7)).unwrap(), 7);
    }
}
