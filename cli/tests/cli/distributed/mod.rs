//! Training by many processes: on this machine, and on hosts with networks of their own.

mod hosts;
mod launchers;
mod mismatches;
mod peers;
mod several;

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{json, Value};

use crate::common::run_python;
use crate::program::Training;
use crate::training;

/// The end of a process, or of torchrun and its ranks on a host.
#[derive(Debug, Deserialize)]
struct Ended {
    /// None if it was still there at the limit.
    status: Option<i32>,
    #[allow(dead_code)] // For what a failing test shows.
    out: String,
    err: String,
    seconds: Option<f64>,
}

/// The answer of `tests/python/hosts.py`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Ended(Vec<Ended>),
    Cannot { cannot: String },
}

/// Processes that begin together, each on a host; see `tests/python/hosts.py`.
struct Hosts {
    link: Value,
    limit: u64,
    deadline: u64,
    arguments: Vec<String>,
    hosts: Vec<Value>,
}

impl Hosts {
    /// On this machine, where everything is killed after so many seconds.
    fn new(limit: u64) -> Self {
        Hosts {
            link: Value::Null,
            limit,
            deadline: limit,
            arguments: Vec::new(),
            hosts: Vec::new(),
        }
    }

    /// Ranks of hosts that are added from here on wait for each other for so many seconds.
    fn deadline(mut self, seconds: u64) -> Self {
        self.deadline = seconds;
        self
    }

    /// Trainings of hosts that are added from here on have these arguments.
    fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self
    }

    /// Gives each host a network of its own; `link` says how packets travel between them.
    fn link(mut self, link: Value) -> Self {
        self.link = link;
        self
    }

    /// One more host, on which torchrun starts a training.
    fn torchrun(self, arguments: &[&str], training: &Training, more: &[&str]) -> Self {
        let mut all: Vec<String> = arguments.iter().map(|word| word.to_string()).collect();
        all.push("--no-python".into());
        all.extend(self.command(training, more));
        self.host(training, "torchrun", json!(all), &[])
    }

    /// One more host with one process, as launchers start it: they set these variables.
    fn rank(self, variables: &[(&str, &str)], training: &Training, more: &[&str]) -> Self {
        let command = json!(self.command(training, more));
        self.host(training, "command", command, variables)
    }

    fn command(&self, training: &Training, more: &[&str]) -> Vec<String> {
        let mut command = training.command(more);
        command.args(["--ddp-timeout", &self.deadline.to_string()]).args(&self.arguments);
        let all = [command.get_program()].into_iter().chain(command.get_args());
        all.map(|part| part.to_str().unwrap().to_owned()).collect()
    }

    fn host(
        mut self,
        training: &Training,
        how: &str,
        command: Value,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut environment = json!({ "OMP_NUM_THREADS": "1" });
        for (name, value) in variables {
            environment[*name] = json!(value);
        }
        let directory = training.dir.path();
        self.hosts
            .push(json!({ how: command, "directory": directory, "environment": environment }));
        self
    }

    /// Runs all to their ends; `None` where no host can have a network of its own, which is said in a visible line.
    fn run(&self) -> Option<Vec<Ended>> {
        let plan = json!({ "link": self.link, "limit": self.limit, "hosts": self.hosts });
        match serde_json::from_str(&run_python("hosts.py", &[&plan.to_string()])).unwrap() {
            Answer::Ended(ended) => Some(ended),
            Answer::Cannot { cannot } => {
                // Not by a macro: what those print is kept back when a test passes.
                let test = std::thread::current().name().unwrap_or_default().to_owned();
                let _ = writeln!(std::io::stderr(), "{test}: skipped. {cannot}");
                None
            }
        }
    }
}

/// Panics unless all ended well.
fn well(ended: &[Ended]) {
    assert!(ended.iter().all(|host| host.status == Some(0)), "{ended:#?}");
}

/// Panics unless all ended in an error within so many seconds, without a panic or an abort.
fn refused(ended: &[Ended], seconds: f64) {
    for host in ended {
        let Ended { status, err, .. } = host;
        let took = host.seconds.unwrap_or(f64::INFINITY);
        assert!(status.is_some_and(|status| status != 0), "{ended:#?}");
        assert!(took <= seconds, "{took:.1} s, expected {seconds} at most: {ended:#?}");
        assert!(err.contains("error: ") && !err.contains("panicked"), "{ended:#?}");
        // Neither an abort nor c10d's own log with its stacks.
        assert!(!err.contains("terminate called") && !err.contains("frame #"), "{ended:#?}");
    }
}

/// The variables that every launcher sets.
fn variables<'a>(rank: &'a str, world: &'a str, port: &'a str) -> [(&'a str, &'a str); 5] {
    [
        ("RANK", rank),
        ("WORLD_SIZE", world),
        ("LOCAL_RANK", rank),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", port),
    ]
}

/// A port that nobody listens on.
pub fn port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}

/// The lines of the metrics so far.
fn lines(training: &Training, out: &str) -> usize {
    let text = std::fs::read_to_string(training.path(out).join("metrics.jsonl"));
    text.unwrap_or_default().lines().count()
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(120), "nothing happens");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The processes of a rank that run in this directory.
fn processes(dir: &Path, rank: usize) -> Vec<u32> {
    let dir = dir.canonicalize().unwrap();
    let variable = format!("RANK={rank}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let here = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == dir);
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let has = |name: &str| environment.split(|byte| *byte == 0).any(|v| v == name.as_bytes());
        if here && has(&variable) {
            found.push(process);
        }
    }
    found
}

/// Sends a signal by its name to a process, which may be gone.
fn signal(name: &str, process: u32) {
    let mut command = std::process::Command::new("kill");
    let _ = command.args([&format!("-{name}"), &process.to_string()]).output().unwrap();
}

/// The files of a run that must be the same however it went.
fn results(training: &Training, out: &str) -> Vec<Vec<u8>> {
    let names = ["adapter/adapter_model.safetensors", "adapter/adapter_config.json"];
    names.map(|name| std::fs::read(training.path(out).join(name)).unwrap()).into()
}

/// A tiny training of 24 steps that says what it does to the bit.
fn short() -> Training {
    training().set(&["max_steps=24", "save_interval=4", "deterministic=true", "batch_size=2"])
}
