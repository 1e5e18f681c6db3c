//! `runs.json`: the runs that a folder is of, those that have stopped early, and in the end the results.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use ln_tuning::{atomic, regular};
use serde::{Deserialize, Serialize};

use crate::train::checkpoint::{self, RUNS};
use crate::train::metrics::Metrics;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The names of the runs, each with its folder.
    pub runs: Vec<Line>,
    /// The last step at which half of the runs stopped; 0: there was none yet.
    pub halved: u64,
    /// The name of the best run, once all have ended.
    pub best: Option<String>,
}

/// A run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    pub name: String,
    pub folder: String,
    /// The end of one that ended before its last step.
    pub stopped: Option<Stopped>,
    /// The last evaluation.
    pub eval_loss: Option<f64>,
    /// The mean of the last tenth of the steps.
    pub loss: Option<f64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stopped {
    pub step: u64,
    pub reason: String,
}

impl Record {
    /// That of these runs, which goes on with what is in `out`.
    ///
    /// # Errors
    /// If `out` is that of other runs.
    pub fn open(out: &Path, names: &[String], folders: &[String]) -> Result<Self> {
        let line = |(name, folder): (&String, &String)| Line {
            name: name.clone(),
            folder: folder.clone(),
            stopped: None,
            eval_loss: None,
            loss: None,
        };
        let lines: Vec<Line> = names.iter().zip(folders).map(line).collect();
        let mut record = Record { runs: lines, halved: 0, best: None };
        let cure = "choose another 'out'";
        ensure!(
            checkpoint::steps(out)?.is_empty(),
            "'{}' holds a run that was alone: {cure}",
            out.display()
        );
        let path = out.join(RUNS);
        if !path.exists() {
            return Ok(record);
        }
        let place =
            || format!("'{}' cannot be read: was it changed? Remove it, or {cure}", path.display());
        let before: Record = serde_json::from_str(&regular::read_text(&path).with_context(place)?)
            .with_context(place)?;
        let known = |record: &Record| {
            record.runs.iter().map(|run| run.name.clone()).collect::<Vec<_>>().join("; ")
        };
        if known(&before) != known(&record) {
            bail!(
                "'{}' holds other runs: {}; and they are {} now: {cure}, or undo the change",
                out.display(),
                known(&before),
                known(&record)
            );
        }
        let stopped: BTreeMap<String, Stopped> =
            before.runs.into_iter().filter_map(|run| Some((run.name, run.stopped?))).collect();
        for run in &mut record.runs {
            run.stopped = stopped.get(&run.name).cloned();
        }
        record.halved = before.halved;
        Ok(record)
    }

    pub fn write(&self, out: &Path) -> Result<()> {
        let text = format!("{}\n", serde_json::to_string_pretty(self)?);
        Ok(atomic::write(&[(out.join(RUNS), text.into_bytes())])?)
    }

    /// Forgets what came behind this step, from which the runs go on.
    pub fn back_to(&mut self, step: u64) {
        self.halved = self.halved.min(step);
        for run in &mut self.runs {
            run.stopped = run.stopped.take().filter(|stopped| stopped.step <= step);
        }
    }

    /// Takes the results so far.
    pub fn score(&mut self, run: usize, metrics: Option<&Metrics>) {
        let Some(metrics) = metrics else { return };
        let line = &mut self.runs[run];
        line.eval_loss = metrics.series("eval_loss").last().map(|point| point.1);
        line.loss = recent(metrics);
    }

    /// The place of the run with the lowest loss among those that made all of their steps: of evaluation, where there
    /// is one.
    pub fn best(&self) -> Option<usize> {
        let whole = |run: &&usize| self.runs[**run].stopped.is_none();
        let all: Vec<usize> = (0..self.runs.len()).collect();
        let value = |run: usize| self.runs[run].value();
        let best = all.iter().filter(whole).filter(|run| value(**run).is_finite());
        best.min_by(|a, b| value(**a).total_cmp(&value(**b))).copied()
    }

    pub fn table(&self) -> String {
        let width = self.runs.iter().map(|run| run.name.len()).max().unwrap_or(0).max(3);
        let evaluated = self.runs.iter().any(|run| run.eval_loss.is_some());
        let number =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        let head = if evaluated { format!(" {:>10}", "eval_loss") } else { String::new() };
        let mut text = format!("{:<width$} {:>10}{head}\n", "run", "loss");
        for run in &self.runs {
            let eval =
                if evaluated { format!(" {:>10}", number(run.eval_loss)) } else { String::new() };
            let end = match &run.stopped {
                Some(stopped) => format!("  stopped behind step {}", stopped.step),
                None if self.best.as_ref() == Some(&run.name) => "  best".to_owned(),
                None => String::new(),
            };
            text += &format!("{:<width$} {:>10}{eval}{end}\n", run.name, number(run.loss));
        }
        text
    }
}

impl Line {
    /// The number that is low for a good run.
    pub fn value(&self) -> f64 {
        self.eval_loss.or(self.loss).unwrap_or(f64::NAN)
    }
}

/// The mean loss of the last tenth of the steps so far.
fn recent(metrics: &Metrics) -> Option<f64> {
    let losses = metrics.series("loss");
    let last = &losses[losses.len() - losses.len().div_ceil(10)..];
    let sum: f64 = last.iter().map(|point| point.1).sum();
    (!last.is_empty()).then(|| sum / last.len() as f64)
}
