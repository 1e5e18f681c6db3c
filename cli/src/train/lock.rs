//! The lock on the folders of a run, so that no two runs write into one. It goes with the process, however that ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use chrono::{DateTime, Local, Utc};
use ln_tuning::regular;
use serde::{Deserialize, Serialize};

use super::ranks::{alone_among, Ranks};
use crate::progress;

/// The file that is locked, in each folder. A killed process leaves it behind, without the lock.
const FILE: &str = ".lock";

/// The time for which a launcher's next attempt waits for the process of the one before, which may still be ending.
const DYING: Duration = Duration::from_secs(10);
/// The time between two looks at a lock.
const LOOK: Duration = Duration::from_millis(50);
/// The time for which a process that has just got the lock may not have said who it is.
const SAYING: Duration = Duration::from_millis(300);

/// The folders of a run, into which no other run writes as long as this is there.
pub struct Lock {
    held: Vec<Held>,
}

/// One folder.
struct Held {
    file: File,
    path: PathBuf,
    /// The folders that were made for it.
    made: Vec<PathBuf>,
}

/// The process that has a lock, in its own words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    host: String,
    since: DateTime<Utc>,
    /// The launcher's run, whose next attempt may begin while this process still ends.
    launch: Option<String>,
}

impl Lock {
    /// Locks the folders for rank 0, and makes those that are missing. All ranks call this.
    ///
    /// # Errors
    /// On all ranks, if another process has one of them, or none can be made.
    pub fn take<'p>(folders: impl IntoIterator<Item = &'p Path>, ranks: &Ranks) -> Result<Lock> {
        let patience = ranks.timeout().map_or(DYING, |timeout| DYING.min(timeout / 2));
        let all = || {
            let mut lock = Lock { held: Vec::new() };
            for folder in folders {
                lock.held.push(Held::take(folder, patience)?);
            }
            Ok(lock)
        };
        ranks.agree(if ranks.is_first() { all() } else { Ok(Lock { held: Vec::new() }) })
    }
}

/// Inner folders go before those that they stand in.
impl Drop for Lock {
    fn drop(&mut self) {
        while self.held.pop().is_some() {}
    }
}

impl Held {
    fn take(folder: &Path, patience: Duration) -> Result<Self> {
        let path = folder.join(FILE);
        let own = Holder::new();
        let (begun, mut said) = (Instant::now(), false);
        let mut made = Vec::new();
        loop {
            let file = open(folder, &path, &mut made)
                .with_context(|| format!("cannot write into '{}'", folder.display()))?;
            match try_lock(&file) {
                // The one before may have removed it, behind its work.
                Ok(true) if !is_at(&file, &path) => continue,
                Ok(true) => {
                    let mut held = Held { file, path, made };
                    let name = || format!("cannot write '{}'", held.path.display());
                    let text = serde_json::to_string(&own)?;
                    held.file.set_len(0).with_context(name)?;
                    held.file.write_all(text.as_bytes()).with_context(name)?;
                    return Ok(held);
                }
                Ok(false) => {}
                Err(error) => {
                    progress::warn(format!(
                        "warning: '{}' cannot be locked ({error}): take care that no other run writes into it",
                        folder.display()
                    ));
                    return Ok(Held { file, path, made });
                }
            }
            let holder = Holder::read(&path);
            if holder.is_none() && begun.elapsed() < SAYING {
                std::thread::sleep(LOOK);
                continue;
            }
            let before = holder.as_ref().is_some_and(|holder| own.comes_behind(holder));
            if !before || begun.elapsed() >= patience {
                bail!("{}", refusal(folder, holder.as_ref(), &own));
            }
            if !said {
                said = true;
                progress::warn(format!(
                    "{} of an attempt before still has '{}': waiting for its end, {} s at most",
                    process(holder.as_ref(), &own),
                    folder.display(),
                    patience.as_secs_f64()
                ));
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// Leaves no trace but the results of the run.
impl Drop for Held {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
        // Fails where there is something in it.
        self.made.iter().rev().for_each(|dir| drop(fs::remove_dir(dir)));
    }
}

/// Opens the file, in a folder that is made if need be.
fn open(folder: &Path, path: &Path, made: &mut Vec<PathBuf>) -> io::Result<File> {
    loop {
        let missing = folder
            .ancestors()
            .take_while(|dir| !dir.as_os_str().is_empty() && fs::symlink_metadata(dir).is_err());
        let missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        fs::create_dir_all(folder)?;
        for dir in missing.into_iter().rev() {
            if !made.contains(&dir) {
                made.push(dir);
            }
        }
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        match file {
            // Another process has removed the folder, which it had made, since it failed.
            Err(error) if error.kind() == ErrorKind::NotFound && !folder.exists() => {}
            file => return file,
        }
    }
}

/// True if it is got, false if another process has it; an error where the file system has no locks.
fn try_lock(file: &File) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use rustix::fs::{flock, FlockOperation};
        use rustix::io::Errno;
        loop {
            return match flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(true),
                Err(Errno::WOULDBLOCK) => Ok(false),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        Err(ErrorKind::Unsupported.into())
    }
}

/// True if the open file is the one at this path.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let place = |found: fs::Metadata| (found.dev(), found.ino());
        let (own, there) = (file.metadata().map(place), fs::symlink_metadata(path).map(place));
        matches!((own, there), (Ok(own), Ok(there)) if own == there)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

impl Holder {
    fn new() -> Self {
        let host = host();
        let launch = std::env::var("TORCHELASTIC_RUN_ID").ok().map(|id| {
            // Without an id of its own, a run is known by its agent.
            if id == "none" {
                format!("{host} {}", agent())
            } else {
                id
            }
        });
        Holder { pid: std::process::id(), host, since: Utc::now(), launch }
    }

    fn read(path: &Path) -> Option<Self> {
        serde_json::from_str(&regular::read_text(path).ok()?).ok()
    }

    /// True if this process is of a later attempt of the same launcher's run.
    fn comes_behind(&self, other: &Holder) -> bool {
        self.launch.is_some() && self.launch == other.launch
    }
}

/// The error about a folder that another process has, with the cure.
fn refusal(folder: &Path, holder: Option<&Holder>, own: &Holder) -> String {
    let since = holder.map(|holder| {
        let since = holder.since.with_timezone(&Local);
        format!(", since {}", since.format("%Y-%m-%d %H:%M:%S"))
    });
    let stop = match holder {
        Some(holder) if holder.host == own.host => format!("stop it (kill {})", holder.pid),
        _ => "stop it".to_owned(),
    };
    // Started many times for one run, it may be.
    let many = alone_among().map_or(String::new(), |words| format!(". {words}"));
    format!(
        "{} trains into '{}'{}: wait for its end, {stop}, or choose another 'out'{many}",
        process(holder, own),
        folder.display(),
        since.unwrap_or_default()
    )
}

fn process(holder: Option<&Holder>, own: &Holder) -> String {
    match holder {
        Some(holder) if holder.host == own.host => {
            format!("process {} on this machine ({})", holder.pid, holder.host)
        }
        Some(holder) => format!("process {} on the machine {}", holder.pid, holder.host),
        None => "another process".to_owned(),
    }
}

/// The name of this machine.
fn host() -> String {
    #[cfg(unix)]
    return rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    std::env::var("COMPUTERNAME").unwrap_or_default()
}

/// The process that has started this one.
fn agent() -> u32 {
    #[cfg(unix)]
    return std::os::unix::process::parent_id();
    #[cfg(not(unix))]
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(folder: &Path) -> Result<Lock> {
        Lock::take([folder], &Ranks::alone())
    }

    #[test]
    fn a_folder_is_of_one_run_and_free_again_without_a_trace_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new/out");
        let lock = take(&folder).unwrap();
        for _ in 0..2 {
            let error = take(&folder).err().unwrap().to_string();
            let own = std::process::id().to_string();
            for words in [&own, "new/out'", &host(), ", since 2", "kill", "choose another 'out'"] {
                assert!(error.contains(words), "'{words}' is not in: {error}");
            }
        }
        drop(lock);
        assert!(!dir.path().join("new").exists());
        // With something in it, it stays, and nothing beside that.
        let lock = take(&folder).unwrap();
        fs::write(folder.join("metrics.jsonl"), "").unwrap();
        drop(lock);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn many_that_come_at_once_have_it_one_by_one_though_each_removes_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("out");
        let inside = std::sync::atomic::AtomicUsize::new(0);
        let got = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    use std::sync::atomic::Ordering::SeqCst;
                    for _ in 0..100 {
                        let file = Held::take(&folder, Duration::ZERO);
                        if file.is_ok() {
                            assert_eq!(inside.fetch_add(1, SeqCst), 0);
                            got.fetch_add(1, SeqCst);
                            inside.fetch_sub(1, SeqCst);
                        }
                    }
                });
            }
        });
        assert!(got.into_inner() >= 100);
        // One that came while another went may have found the folder, which is then not its own to remove.
        assert!(fs::read_dir(&folder).map_or(0, Iterator::count) == 0);
    }

    #[test]
    fn a_file_that_a_killed_process_left_or_that_says_nothing_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        for text in
            ["", "{", "{\"pid\": 1, \"host\": \"far\", \"since\": \"2026-01-01T00:00:00Z\"}"]
        {
            fs::write(dir.path().join(FILE), text).unwrap();
            take(dir.path()).unwrap();
            assert!(!dir.path().join(FILE).exists());
        }
        let error = take(&dir.path().join("missing\0")).err().unwrap();
        assert!(error.to_string().contains("cannot write into"), "{error:#}");
    }

    #[test]
    fn the_words_are_those_of_what_is_known() {
        let own = Holder { launch: None, ..Holder::new() };
        let far = Holder { host: "far".into(), pid: 7, ..own.clone() };
        let words = refusal(Path::new("out"), Some(&far), &own);
        assert!(
            words.starts_with("process 7 on the machine far trains into 'out', since "),
            "{words}"
        );
        let words = refusal(Path::new("out"), None, &own);
        assert!(words.starts_with("another process trains into 'out': wait"), "{words}");
        let run = |launch: &str| Holder { launch: Some(launch.into()), ..own.clone() };
        assert!(run("a").comes_behind(&run("a")) && !run("a").comes_behind(&run("b")));
        assert!(!own.comes_behind(&own));
    }
}
