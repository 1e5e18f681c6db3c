//! Runs one of the fine-tuning examples in a directory of its own.
#![allow(dead_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use serde_json::Value;
use tempfile::TempDir;

pub struct Example {
    binary: PathBuf,
    pub dir: TempDir,
    settings: Vec<String>,
}

impl Example {
    pub fn new(name: &str, model: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("settings.yaml"), "out: out\n").unwrap();
        let settings = vec![format!("model={}", model.display())];
        Example { binary: binary(name), dir, settings }
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
        let mut command = Command::new(&self.binary);
        command.current_dir(self.dir.path()).args(["--config", "settings.yaml"]);
        for setting in self.settings.iter().map(String::as_str).chain(more.iter().copied()) {
            command.args(["--set", setting]);
        }
        command.env("OMP_NUM_THREADS", "1").stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn output(&self, more: &[&str]) -> Output {
        self.command(more).output().unwrap()
    }

    /// What a successful run prints.
    pub fn run(&self, more: &[&str]) -> String {
        let output = self.output(more);
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
        out
    }

    /// What a run prints that must fail, without a panic.
    pub fn refusal(&self, more: &[&str]) -> String {
        let output = self.output(more);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{out}\n{err}");
        assert!(!err.contains("panicked"), "{err}");
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

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The example's binary, built if it is not there: `cargo test --test …` alone does not build examples.
pub fn binary(name: &str) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(|e| e.into_inner());
    let output = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--quiet", "--message-format=json", "--example", name])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).unwrap();
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_it = |message: Value| {
        let path = message["executable"].as_str()?.to_owned();
        (message["target"]["name"] == name).then(|| PathBuf::from(path))
    };
    messages.filter_map(of_it).next_back().expect("cargo says where the example is")
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
