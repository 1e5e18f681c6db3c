//! `metrics.jsonl`: a line per step and per evaluation.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{json, Value};

use super::atomic;

pub struct Metrics {
    file: File,
    path: PathBuf,
    /// Everything written so far, for the curves.
    pub lines: Vec<Value>,
}

/// One training step, as measured.
#[derive(Debug, Clone, Copy)]
pub struct StepLine {
    pub step: u64,
    pub loss: f64,
    pub lr: f64,
    pub grad_norm: f64,
    pub tokens: u64,
    pub tokens_per_s: f64,
    pub memory_mb: f64,
}

impl Metrics {
    /// Keeps the lines of the file up to `step`; those after it are of a run that was cut off.
    pub fn open(out: &Path, step: u64) -> Result<Self> {
        let path = out.join("metrics.jsonl");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let kept = |line: &Value| line["step"].as_u64().is_some_and(|s| s <= step);
        let lines: Vec<Value> = lines.filter(kept).collect();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        atomic::write(&path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.with_context(|| format!("cannot write '{}'", path.display()))?;
        Ok(Metrics { file, path, lines })
    }

    pub fn step(&mut self, line: StepLine) -> Result<()> {
        let StepLine { step, loss, lr, grad_norm, tokens, tokens_per_s, memory_mb } = line;
        self.write(json!({
            "step": step, "loss": loss, "lr": lr, "grad_norm": grad_norm, "tokens": tokens,
            "tokens_per_s": tokens_per_s.round(), "memory_mb": memory_mb.round(),
        }))
    }

    /// The scores of an evaluation after `step`.
    pub fn evaluation(&mut self, step: u64, scores: &[(&'static str, f64)]) -> Result<()> {
        let mut line = json!({"step": step});
        for (name, value) in scores {
            line[*name] = json!(value);
        }
        self.write(line)
    }

    fn write(&mut self, line: Value) -> Result<()> {
        // In one piece: a reader sees whole lines.
        let text = format!("{line}\n");
        let written = self.file.write_all(text.as_bytes());
        written.with_context(|| format!("cannot write '{}'", self.path.display()))?;
        self.lines.push(line);
        Ok(())
    }

    /// `(step, value)` of the lines that have `key`.
    pub fn series(&self, key: &str) -> Vec<(f64, f64)> {
        let point = |line: &Value| Some((line["step"].as_f64()?, line.get(key)?.as_f64()?));
        self.lines.iter().filter_map(point).collect()
    }
}
