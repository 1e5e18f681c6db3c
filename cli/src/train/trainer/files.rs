//! The files of a run: checkpoints, curves, and the adapter in the end.

use std::path::Path;
use std::time::Instant;

use anyhow::{ensure, Result};
use ln_tuning::{LnTuningModel, SaveOptions};

use super::{Diverged, Run};
use crate::train::task::Task;
use crate::train::{checkpoint, curves};

impl<T: Task> Run<'_, T> {
    pub(super) fn last_good(&self) -> Result<String> {
        Ok(match checkpoint::steps(&self.settings.out)?.pop() {
            Some(step) => {
                let dir = checkpoint::dir(&self.settings.out, step);
                format!("the last good checkpoint is '{}'", dir.display())
            }
            None => "there is no checkpoint yet".into(),
        })
    }

    /// Writes a checkpoint.
    pub(in crate::train) fn save(&mut self, tuned: &LnTuningModel) -> Result<()> {
        // No loss has seen the last update, and such weights could not be read again.
        for (key, weights) in tuned.state_dict(&self.adapter)? {
            if weights.f_isfinite()?.f_all()?.f_int64_value(&[])? != 1 {
                diverged!(
                    "step {}: '{key}' is NaN or infinite behind the update, from {}; {}. Try a lower 'optimizer.lr' \
                     or 'optimizer.weight_decay'",
                    self.state.step,
                    self.sources,
                    self.last_good()?
                );
            }
        }
        if self.ranks.is_first() {
            let out = &self.settings.out;
            checkpoint::save(out, &self.state, tuned, &self.adapter, &mut self.optimizer)?;
        }
        self.clock = Instant::now();
        Ok(())
    }

    /// Removes old checkpoints, behind a new one.
    pub(in crate::train) fn rotate(&mut self) -> Result<()> {
        if !self.ranks.is_first() {
            return Ok(());
        }
        let best = self.state.best.map(|best| best.0);
        checkpoint::rotate(&self.settings.out, self.settings.keep_last, best)?;
        self.draw()
    }

    pub(super) fn draw(&mut self) -> Result<()> {
        self.drawn = Instant::now();
        let metrics = self.metrics.as_ref();
        metrics.map_or(Ok(()), |metrics| curves::draw(&self.settings.out, metrics))
    }

    /// Writes the adapter as a directory for PEFT.
    pub(in crate::train) fn write_adapter(&self, tuned: &LnTuningModel, dir: &Path) -> Result<()> {
        tuned.save_pretrained_with(dir, &SaveOptions::default().only(&self.adapter))?;
        self.task.add_files(dir)
    }

    pub(super) fn finish(self, tuned: &LnTuningModel) -> Result<()> {
        let out = &self.settings.out;
        self.bar.finish();
        let step = self.state.step;
        if step < self.total {
            println!("stopped after step {step} of {}; run the same command to resume", self.total);
            return Ok(());
        }
        ensure!(step > 0, "there was nothing to do");
        let adapter = out.join("adapter");
        self.write_adapter(tuned, &adapter)?;
        if self.skipped > 0 {
            println!("{} of {step} steps were skipped by the loss scale", self.skipped);
        }
        self.graphs.iter().for_each(|graphs| println!("{}", graphs.report()));
        let seconds = self.begun.elapsed().as_secs_f64();
        println!("{seconds:.1} s; the adapter is in '{}'", adapter.display());
        if let Some((step, value)) = self.state.best {
            let dir = checkpoint::dir(out, step);
            println!("the lowest eval_loss, {value:.4}, was that of '{}'", dir.display());
        }
        Ok(())
    }
}
