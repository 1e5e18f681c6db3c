//! The figures of steps: they stay on the device until they are read, and are then written down.

use std::time::Instant;

use anyhow::Result;
use tch::Tensor;

use super::{Diverged, Run};
use crate::progress;
use crate::train::graphs::Graphs;
use crate::train::task::{numbers, Task};
use crate::train::{interrupt, memory};

/// Seconds between two drawings of the curves.
const REDRAW: u64 = 5;
/// Steps in a row that dynamic loss scaling may skip: the scale is 2^-30 of the first by then.
const MOST_SKIPPED: u64 = 30;

/// A step whose figures have not been read yet: the device may still be at it.
pub(super) struct Pending {
    pub(super) step: u64,
    /// Scalars: this rank's loss, that of all, the gradient's norm and, with dynamic loss scaling, the steps skipped up to
    /// this one.
    pub(super) figures: Vec<Tensor>,
    /// That of what has none of its own.
    pub(super) lr: f64,
    pub(super) size: u64,
    pub(super) sources: String,
}

impl<T: Task> Run<'_, T> {
    /// True if figures are read after this step. A process with others cannot go by its own clock.
    pub(super) fn is_read(&self) -> bool {
        if self.ranks.are_one() {
            return interrupt::asked() || self.clock.elapsed() >= self.read_interval;
        }
        self.state.step >= self.next_read
    }

    /// Waits for the figures of the steps since the last reading, and writes them down. True if the run shall stop,
    /// since a rank was asked to.
    pub(super) fn read(&mut self) -> Result<bool> {
        let mut sums = self.sums();
        self.ranks.sum(&mut sums)?;
        self.read_with(&sums)
    }

    /// The numbers of the steps since the last reading that are added up over the ranks: their sizes, the wish to stop,
    /// and the seconds.
    pub(super) fn sums(&self) -> Vec<f64> {
        let mut sums: Vec<f64> = self.pending.iter().map(|step| step.size as f64).collect();
        if !sums.is_empty() {
            let asked = f64::from(u8::from(interrupt::asked()));
            sums.extend([asked, self.clock.elapsed().as_secs_f64()]);
        }
        sums
    }

    /// [`read`](Self::read) with these numbers, added up.
    pub(super) fn read_with(&mut self, sums: &[f64]) -> Result<bool> {
        let mut steps = std::mem::take(&mut self.pending);
        if steps.is_empty() {
            return Ok(interrupt::asked());
        }
        let all = numbers(steps.iter().flat_map(|step| &step.figures))?;
        let figures = all.chunks(all.len() / steps.len());
        for ((step, size), figures) in steps.iter_mut().zip(sums).zip(figures.clone()) {
            step.size = *size as u64;
            if figures[0].is_finite() && !self.ranks.are_one() {
                step.sources += " or rows of other ranks";
            }
        }
        let size: u64 = steps.iter().map(|step| step.size).sum();
        let (asked, seconds) = (sums[steps.len()] > 0., sums[steps.len() + 1]);
        let seconds = seconds / self.ranks.size() as f64;
        let speed = size as f64 / seconds;
        self.next_read = self.state.step + self.steps_until_read(steps.len(), seconds);
        self.clock = Instant::now();
        // Once for all of them: a GPU is asked in a thread of its own.
        let memory_mb = memory::used(self.device).unwrap_or(0) as f64 / 1e6;
        let mut both = steps.iter().zip(figures);
        both.try_for_each(|(step, figures)| self.log(step, &figures[1..], speed, memory_mb))?;
        Ok(asked)
    }

    /// Steps that take about as long as should be between two readings, after so many took so many seconds.
    fn steps_until_read(&self, steps: usize, seconds: f64) -> u64 {
        let most = self.read_interval.as_secs_f64() * steps as f64 / seconds.max(1e-9);
        // A pause in these seconds, such as an evaluation, passes.
        most.clamp(1., 1e6) as u64
    }

    /// Writes down the figures of a step, the speed (of the batches' sizes, in a second) and the memory.
    fn log(&mut self, done: &Pending, figures: &[f64], speed: f64, memory_mb: f64) -> Result<()> {
        let Pending { step, lr, size, sources, .. } = done;
        let (loss, grad_norm) = (figures[0], figures[1]);
        let skipped = figures.get(2).map_or(self.skipped, |skipped| *skipped as u64);
        let was_skipped = skipped > self.skipped;
        self.skipped = skipped;
        self.in_a_row = if was_skipped { self.in_a_row + 1 } else { 0 };
        if loss.is_finite() && self.in_a_row >= MOST_SKIPPED {
            diverged!(
                "step {step}: the last {MOST_SKIPPED} steps were skipped, since their gradients are not finite at any \
                 loss scale, from {sources}. Try 'kind' bf16 or f32"
            );
        }
        if !loss.is_finite() || !(grad_norm.is_finite() || was_skipped) {
            let good = self.last_good()?;
            diverged!(
                "step {step}: the loss is {loss} and the gradient norm {grad_norm}, from {sources}; {good}. Check these \
                 lines, or try a lower 'optimizer.lr'"
            );
        }
        let mut figures = vec![
            ("loss", loss),
            ("lr", *lr),
            ("tokens", *size as f64),
            ("tokens_per_s", speed.round()),
            ("memory_mb", memory_mb.round()),
        ];
        if was_skipped {
            self.say(&format!(
                "step {step}: skipped, since its gradients overflow at this loss scale, which is lower from now on \
                 ({skipped} so far)"
            ));
        } else {
            figures.insert(2, ("grad_norm", grad_norm));
        }
        if self.settings.scales_dynamically() {
            figures.push(("skipped_steps", skipped as f64));
        }
        let name = self.prefix();
        let Some(metrics) = &mut self.metrics else { return Ok(()) };
        metrics.write(*step, &figures)?;
        let unit = self.task.unit();
        let mut shown = format!("{name}loss {loss:.4} {speed:.0} {unit}/s {memory_mb:.0} MB");
        if let Some(replayed) = self.graphs.as_ref().and_then(Graphs::replayed) {
            shown += &format!(", {replayed} steps replayed");
        }
        self.bar.set_position(*step);
        if self.bar.is_hidden() && self.said.elapsed().as_secs() >= progress::REPEAT {
            self.said = Instant::now();
            let left = indicatif::HumanDuration(self.bar.eta());
            println!("step {step} of {}: {shown}, {left} left", self.total);
        }
        self.bar.set_message(shown);
        if self.drawn.elapsed().as_secs() >= REDRAW {
            self.draw()?;
        }
        Ok(())
    }
}
