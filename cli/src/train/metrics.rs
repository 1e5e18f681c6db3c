//! `metrics.jsonl`: a line per step and per evaluation.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ln_tuning::{atomic, regular};
use serde_json::{json, Value};

use super::tensorboard::TensorBoard;

pub struct Metrics {
    file: File,
    path: PathBuf,
    board: Option<TensorBoard>,
    /// Everything written so far, for the curves.
    pub lines: Vec<Value>,
}

impl Metrics {
    /// Keeps the lines of the file up to `step`; those after it are of a run that was cut off.
    pub fn open(out: &Path, step: u64, tensorboard: bool) -> Result<Self> {
        let path = out.join("metrics.jsonl");
        let text = if path.exists() { regular::read(&path)? } else { Vec::new() };
        let text = String::from_utf8_lossy(&text);
        let kept = |line: &Value| line["step"].as_u64().is_some_and(|s| s <= step);
        let read = |text| Some((text, serde_json::from_str(text).ok().filter(kept)?));
        // As they are: other programs may have written numbers in another form.
        let (texts, lines): (Vec<&str>, Vec<Value>) = text.lines().filter_map(read).unzip();
        let text: String = texts.iter().map(|text| format!("{text}\n")).collect();
        atomic::write(&[(path.clone(), text.into_bytes())])?;
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.with_context(|| format!("cannot write '{}'", path.display()))?;
        let board = tensorboard.then(|| TensorBoard::create(out)).transpose()?;
        Ok(Metrics { file, path, board, lines })
    }

    /// A line for `step`, also for TensorBoard.
    pub fn write(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut line = json!({"step": step});
        for (name, value) in values {
            line[*name] = json!(value);
        }
        // In one piece: a reader sees whole lines.
        let text = format!("{line}\n");
        let written = self.file.write_all(text.as_bytes());
        written.with_context(|| format!("cannot write '{}'", self.path.display()))?;
        self.lines.push(line);
        self.board.as_mut().map_or(Ok(()), |board| board.scalars(step, values))
    }

    /// `(step, value)` of the lines that have `key`.
    pub fn series(&self, key: &str) -> Vec<(f64, f64)> {
        let point = |line: &Value| Some((line["step"].as_f64()?, line.get(key)?.as_f64()?));
        self.lines.iter().filter_map(point).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_before_a_step_stay_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path(), 0, false).unwrap();
        // Widened from f32, as losses are.
        let mut losses: Vec<f64> = (1..400).map(|i| f64::from((i as f32).sqrt().ln())).collect();
        losses[3] = 3.740_797_042_846_679_7;
        for (step, loss) in (1..).zip(&losses) {
            metrics.write(step, &[("loss", *loss)]).unwrap();
        }
        let read = || std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        let before = read();
        Metrics::open(dir.path(), 399, false).unwrap();
        assert!(read() == before);
        Metrics::open(dir.path(), 7, false).unwrap();
        assert!(before.starts_with(&read()) && read().lines().count() == 7);
    }
}
