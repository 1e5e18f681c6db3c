//! A process that was told that it is alone, and others that take it for their rank 0, or were told to be rank 0 too:
//! a launcher is set wrong, and nobody would notice.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use ln_tuning::distributed::ProcessGroup;
use ln_tuning::ErrorKind;

use crate::train::interrupt;

/// The time in which it must be known who else is there.
const ASKED: Duration = Duration::from_secs(5);
/// The time in which a launcher starts all processes of a run. Whoever comes later is of another one, which may have the
/// port then.
const WATCHED: Duration = Duration::from_secs(120);
/// The time between two looks at who has come.
const LOOK: Duration = Duration::from_millis(500);

/// Answers others at MASTER_PORT, if the launcher gave one, that this process is alone, and ends the run as a signal does
/// if there are any.
pub(super) fn watch() -> Result<()> {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    // The store of torchrun is of its own ranks alone.
    if !["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"].into_iter().all(set)
        || std::env::var_os("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True")
    {
        return Ok(());
    }
    thread::Builder::new().name("guard".into()).spawn(|| {
        let group = match ProcessGroup::from_env_with(ASKED) {
            Ok(group) => group,
            Err(error) => {
                if error.kind() == ErrorKind::Distributed {
                    interrupt::fail(error.to_string());
                }
                return;
            }
        };
        let begun = Instant::now();
        while begun.elapsed() < WATCHED {
            // Without a store, nobody can come.
            let Ok(strangers) = group.strangers() else { return };
            if let Some(strangers) = strangers {
                return interrupt::fail(format!(
                    "this process trains alone, and others would train with it: {strangers}"
                ));
            }
            thread::sleep(LOOK);
        }
    })?;
    Ok(())
}
