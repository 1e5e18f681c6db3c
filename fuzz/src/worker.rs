//! A worker: makes and damages the files of a target, and hands them to the code under test, round after round.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{catch_unwind, set_hook, AssertUnwindSafe};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use fastrand::Rng;

use crate::targets::{self, Target};

/// The longest error, in bytes.
const LONGEST: usize = 10_000;

/// The outcome of a round.
enum Outcome {
    Accepted,
    /// With this error.
    Refused(String),
    /// A finding, and a description of it.
    Found(String),
}

/// Runs rounds from `first` on, until the process that watches is gone. Each round sends `>` when it begins, and `a`
/// (accepted), `r` (refused) or `!` (a finding) when it ends. The files of the present round stand in `OUT/now`.
pub fn run(name: &str, first: u64, seed: u64, out: &Path) -> Result<()> {
    // The process that watches gave one end of a pair of sockets as standard input.
    let mut watcher = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let target = targets::open(name)?;
    let now = out.join("now");
    for round in first.. {
        let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round);
        let _ = fs::remove_dir_all(&now);
        fs::create_dir_all(&now)?;
        target.make(&now, &mut rng)?;
        fs::write(now.join(NAME), name)?;
        watcher.write_all(b">")?;
        let answer = match outcome(target.as_ref(), &now) {
            Outcome::Accepted => b'a',
            Outcome::Refused(_) => b'r',
            Outcome::Found(text) => {
                fs::write(now.join("finding.txt"), text)?;
                b'!'
            }
        };
        watcher.write_all(&[answer])?;
        if answer == b'!' {
            // The watcher takes the files away first.
            watcher.read_exact(&mut [0])?;
        }
    }
    Ok(())
}

/// The name of the target stands in this file of a finding.
const NAME: &str = "target.name";

/// Runs the files of a finding. True if it is none any more.
pub fn again(finding: &Path) -> Result<bool> {
    let name = fs::read_to_string(finding.join(NAME))
        .with_context(|| format!("'{}' is no finding", finding.display()))?;
    Ok(match outcome(targets::open(&name)?.as_ref(), finding) {
        Outcome::Accepted => {
            println!("accepted");
            true
        }
        Outcome::Refused(text) => {
            println!("refused: {text}");
            true
        }
        Outcome::Found(text) => {
            println!("{text}");
            false
        }
    })
}

/// The last panic, with its place.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn outcome(target: &dyn Target, files: &Path) -> Outcome {
    set_hook(Box::new(|panic| {
        if let Ok(mut last) = PANIC.lock() {
            *last = panic.to_string();
        }
    }));
    match catch_unwind(AssertUnwindSafe(|| target.run(files))) {
        Ok(Ok(())) => Outcome::Accepted,
        Ok(Err(error)) => {
            let text = format!("{error:#}");
            if text.len() > LONGEST {
                let start: String = text.chars().take(1000).collect();
                return Outcome::Found(format!("an error of {} bytes: {start}", text.len()));
            }
            Outcome::Refused(text)
        }
        Err(_) => Outcome::Found(PANIC.lock().map(|text| text.clone()).unwrap_or_default()),
    }
}
