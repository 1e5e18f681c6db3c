//! The ranks of a group as processes of their own.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Names what a rank does, and where it leaves what it found.
pub const TASK: &str = "LN_TUNING_TEST_TASK";
pub const OUT: &str = "LN_TUNING_TEST_OUT";

/// The most that a test waits for a rank.
const PATIENCE: Duration = Duration::from_secs(120);

/// A port that nobody listens at, and that no other group of these tests has.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}

/// This program as one rank, with these variables besides.
pub fn command(task: &str, out: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "rank::of_a_group", "--nocapture", "--test-threads=1"]);
    for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"] {
        command.env_remove(name);
    }
    command.env(TASK, task).env(OUT, out).env("OMP_NUM_THREADS", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A rank that runs. It ends with the test.
pub struct Rank {
    child: Option<Child>,
    begun: Instant,
    out: PathBuf,
}

/// The end of a rank.
pub struct Ended {
    pub status: Option<i32>,
    pub text: String,
    /// The result that it found, or its error.
    pub found: String,
}

/// The environment of a rank: `RANK`, `WORLD_SIZE`, `MASTER_PORT`, and others.
pub fn rank(
    task: &str,
    (rank, world_size): (usize, usize),
    port: u16,
    others: &[(&str, &str)],
    dir: &Path,
) -> Rank {
    let out = dir.join(format!("{task}-{world_size}-{rank}"));
    let mut command = command(task, &out);
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", world_size.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    for (name, value) in others {
        command.env(name, value);
    }
    Rank { child: Some(command.spawn().unwrap()), begun: Instant::now(), out }
}

/// All ranks of a group.
pub fn group(task: &str, world_size: usize, dir: &Path) -> Vec<Rank> {
    let port = free_port();
    (0..world_size).map(|own| rank(task, (own, world_size), port, &[], dir)).collect()
}

impl Rank {
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Waits for the end.
    pub fn end(mut self) -> Ended {
        let mut child = self.child.take().unwrap();
        while child.try_wait().unwrap().is_none() {
            if self.begun.elapsed() > PATIENCE {
                child.kill().unwrap();
                let output = child.wait_with_output().unwrap();
                panic!("a rank does not end: {}", String::from_utf8_lossy(&output.stderr));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        Ended {
            status: output.status.code(),
            text: String::from_utf8_lossy(&text).into_owned(),
            found: std::fs::read_to_string(&self.out).unwrap_or_default(),
        }
    }

    /// Waits for the end, which must be a good one.
    pub fn succeed(self) -> Ended {
        let ended = self.end();
        assert_eq!(ended.status, Some(0), "{}", ended.text);
        ended
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
