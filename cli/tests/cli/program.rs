//! The program, and runs of `train` in a directory of their own.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub struct Training {
    pub dir: TempDir,
    pub settings: Vec<String>,
}

impl Training {
    pub fn new(model: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("settings.yaml"), "out: out\n").unwrap();
        let settings = vec![format!("model={}", model.display())];
        Training { dir, settings }
    }

    pub fn set(mut self, settings: &[&str]) -> Self {
        self.settings.extend(settings.iter().map(|s| s.to_string()));
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub fn command(&self, more: &[&str]) -> Command {
        let mut command = program();
        command.current_dir(self.dir.path()).args(["train", "settings.yaml"]);
        for setting in self.settings.iter().map(String::as_str).chain(more.iter().copied()) {
            command.args(["--set", setting]);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn output(&self, more: &[&str]) -> Output {
        self.command(more).output().unwrap()
    }

    /// The output of a run that succeeds.
    pub fn run(&self, more: &[&str]) -> String {
        let output = self.output(more);
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
        out
    }

    /// The error of a run that must fail, in one line.
    pub fn refusal(&self, more: &[&str]) -> String {
        let output = self.output(more);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{out}\n{err}");
        assert!(err.lines().last().is_some_and(|line| line.starts_with("error: ")), "{err}");
        err
    }

    /// The lines of `metrics.jsonl` that have a key, as `(step, value)`.
    pub fn series(&self, out: &str, key: &str) -> Vec<(u64, f64)> {
        let text = self.read(&format!("{out}/metrics.jsonl"));
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter_map(|line| Some((line["step"].as_u64()?, line.get(key)?.as_f64()?))).collect()
    }

    /// The steps of the checkpoints that are there.
    pub fn checkpoints(&self, out: &str) -> Vec<u64> {
        let entries = std::fs::read_dir(self.path(out).join("checkpoints")).unwrap();
        let step = |name: String| name.strip_prefix("step-")?.parse().ok();
        let mut steps: Vec<u64> = entries
            .filter_map(|entry| step(entry.unwrap().file_name().into_string().unwrap()))
            .collect();
        steps.sort_unstable();
        steps
    }
}

pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The program under test: `LN_TUNING_BIN`, or the one that was built with the tests.
pub fn path() -> OsString {
    let elsewhere = std::env::var_os("LN_TUNING_BIN");
    elsewhere.unwrap_or_else(|| env!("CARGO_BIN_EXE_ln-tuning").into())
}

pub fn program() -> Command {
    let mut command = Command::new(path());
    command.env("OMP_NUM_THREADS", "1");
    command
}

/// The output of a command of the program.
pub fn output(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The JSON of a command that succeeds.
pub fn report(arguments: &[&str]) -> Value {
    serde_json::from_str(&printed(arguments)).unwrap()
}

/// The one line of a command that fails.
pub fn refusal(arguments: &[&str]) -> String {
    let output = output(arguments);
    let words = texts(&output).1.trim().to_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.starts_with("error: ") && words.lines().count() == 1, "{words}");
    words
}

/// The output of a command that succeeds.
pub fn printed(arguments: &[&str]) -> String {
    let output = output(arguments);
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{arguments:?}: {out}\n{err}");
    out
}

/// `device=cuda` where there is a device; otherwise says in a line that is always seen that the test runs on the CPU.
pub fn best_device(test: &str) -> &'static str {
    let status = ln_tuning::device::cuda_status();
    if status.is_available() {
        return "device=cuda";
    }
    // Not by a macro: what those print is kept back when a test passes.
    let _ = writeln!(std::io::stderr(), "{test}: on the CPU, its CUDA part is skipped. {status}");
    "device=cpu"
}
