//! The work that is due behind a step: figures are read, and there is an evaluation or a checkpoint now and then.

use std::time::Instant;

use anyhow::Result;

use super::Run;
use crate::train::evaluation::evaluate;
use crate::train::task::Task;

impl<T: Task> Run<'_, T> {
    /// (evaluation, checkpoint): whether they come after the step that was just made.
    fn due(&self) -> (bool, bool) {
        let end = self.state.step == self.total || self.state.rows >= self.plan.lengths.len();
        let at = |interval: Option<u64>| match interval {
            Some(interval) => {
                self.state.step.is_multiple_of(interval) || self.state.step == self.total
            }
            None => end,
        };
        let evaluates = self.task.eval_rows() > 0;
        (evaluates && at(self.settings.eval_interval), at(self.settings.save_interval))
    }

    /// True if an evaluation is due behind the step that was just made.
    pub(in crate::train) fn evaluates(&self) -> bool {
        self.due().0
    }

    /// Reads and evaluates what is due behind a step. Says whether a checkpoint is due, and whether the run shall stop.
    pub(super) fn settle(&mut self) -> Result<(bool, bool)> {
        let sums = self.due_sums();
        let sums = sums.map(|mut sums| self.ranks.sum(&mut sums).map(|()| sums)).transpose()?;
        self.settle_with(sums.as_deref())
    }

    /// The numbers that the ranks add up, if figures are read behind the step that was just made.
    pub(in crate::train) fn due_sums(&self) -> Option<Vec<f64>> {
        let (evaluate, save) = self.due();
        (evaluate || save || self.is_read()).then(|| self.sums())
    }

    /// [`settle`](Self::settle) with these numbers, added up.
    pub(in crate::train) fn settle_with(&mut self, sums: Option<&[f64]>) -> Result<(bool, bool)> {
        let (evaluate, save) = self.due();
        let stop = sums.map_or(Ok(false), |sums| self.read_with(sums))?;
        let improved = evaluate && self.evaluate()?;
        if evaluate || save {
            self.clock = Instant::now();
        }
        Ok((save || stop || improved, stop))
    }

    /// Evaluates, and says whether the result is better than all before.
    fn evaluate(&mut self) -> Result<bool> {
        let step = self.state.step;
        let scores = evaluate(self.task, self.task.eval_rows(), self.settings, self.ranks)?;
        if let Some(metrics) = &mut self.metrics {
            metrics.write(step, &scores)?;
        }
        let shown: Vec<String> =
            scores.iter().map(|(n, value)| format!("{n} {value:.4}")).collect();
        self.say(&format!("step {step}: {}", shown.join(", ")));
        let value = scores[0].1;
        let better = value.is_finite() && self.state.best.is_none_or(|(_, best)| value < best);
        if better {
            self.state.best = Some((step, value));
        }
        self.draw()?;
        Ok(better)
    }
}
