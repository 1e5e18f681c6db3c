//! The training loop.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use indicatif::ProgressBar;
use ln_tuning::recompute::Recompute;
use ln_tuning::{LnTuningModel, Optimizer, DEFAULT_ADAPTER};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::batches::Plan;
use super::checkpoint::{self, State};
use super::evaluation::evaluate;
use super::metrics::Metrics;
use super::prefetch::Batches;
use super::ranks::Ranks;
use super::settings::Settings;
use super::task::{numbers, Of, Task};
use super::update::update;
use super::{curves, interrupt, memory};
use crate::progress;
use crate::records::digest::Digest;

/// Seconds between two drawings of the curves.
const REDRAW: u64 = 5;
/// Time between two readings of what a GPU has computed.
const READ: Duration = Duration::from_secs(1);
/// Steps in a row that dynamic loss scaling may skip: the scale is 2^-30 of the first by then.
const MOST_SKIPPED: u64 = 30;

struct Run<'a, T: Task> {
    task: &'a T,
    tuned: &'a mut LnTuningModel,
    optimizer: Optimizer,
    settings: &'a Settings,
    ranks: &'a Ranks,
    state: State,
    total: u64,
    plan: Plan,
    recompute: Option<Recompute>,
    /// Of rank 0.
    metrics: Option<Metrics>,
    device: Device,
    /// Steps skipped so far, and in a row, by dynamic loss scaling.
    skipped: u64,
    in_a_row: u64,
    /// Steps whose figures have not been read yet.
    pending: Vec<Pending>,
    /// Those of the last step.
    sources: String,
    /// The time between two readings, each of which waits for the device.
    read_interval: Duration,
    /// The step of the next reading, which is the same for all of several ranks.
    next_read: u64,
    /// The time of the last reading.
    clock: Instant,
    bar: ProgressBar,
    begun: Instant,
    drawn: Instant,
    said: Instant,
}

/// A step whose figures have not been read yet: the device may still be at it.
struct Pending {
    step: u64,
    /// Scalars: this rank's loss, that of all, the gradient's norm and, with dynamic loss scaling, the steps skipped up to this one.
    figures: Vec<Tensor>,
    /// That of what has none of its own.
    lr: f64,
    size: u64,
    sources: String,
}

/// A run that has passed the preflight.
pub struct Ready<'a, T> {
    pub task: &'a T,
    pub vs: &'a VarStore,
    pub tuned: &'a mut LnTuningModel,
    pub optimizer: Optimizer,
    pub settings: &'a Settings,
    pub ranks: &'a Ranks,
    pub plan: Plan,
    pub state: State,
    /// Steps from the beginning to the end.
    pub total: u64,
}

/// Trains from `state` to the last step, or until a signal; true at the last step.
pub fn train<T: Task>(ready: Ready<T>) -> Result<bool> {
    let Ready { task, vs, tuned, optimizer, settings, ranks, plan, state, total } = ready;
    let out = settings.out.as_path();
    let open = || -> Result<Metrics> {
        std::fs::create_dir_all(out).with_context(|| format!("cannot make '{}'", out.display()))?;
        checkpoint::rotate(out, settings.keep_last, state.best.map(|best| best.0))?;
        Metrics::open(out, state.step, settings.tensorboard)
    };
    let metrics = ranks.agree(ranks.is_first().then(open).transpose())?;
    let mut run = Run {
        metrics,
        device: vs.device(),
        skipped: u64::try_from(optimizer.skipped_steps()?.f_int64_value(&[])?)?,
        in_a_row: 0,
        pending: Vec::new(),
        sources: String::new(),
        // A CPU has done its work when it comes back.
        next_read: state.step + 1,
        read_interval: if vs.device() == Device::Cpu { Duration::ZERO } else { READ },
        clock: Instant::now(),
        bar: progress::steps(total, state.step)?,
        begun: Instant::now(),
        drawn: Instant::now(),
        said: Instant::now(),
        task,
        tuned,
        optimizer,
        settings,
        ranks,
        state,
        total,
        plan,
        recompute: settings.recompute()?,
    };
    ranks.stepping(|| run.whole())?;
    if !ranks.are_one() {
        ranks.check_same("trained weights", &run.digest()?)?;
    }
    let ended = run.state.step == run.total;
    let finished = if ranks.is_first() { run.finish(out) } else { Ok(()) };
    ranks.agree(finished)?;
    Ok(ended)
}

impl<T: Task> Run<'_, T> {
    fn whole(&mut self) -> Result<()> {
        let _steps = interrupt::Steps::begin();
        let schedule = self.settings.schedule(self.total);
        self.clock = Instant::now();
        while self.state.step < self.total {
            let steps = self.plan.steps(self.state.epoch, self.state.rows);
            for step in Batches::new(self.task, self.settings, steps, usize::MAX) {
                let (rows, group) = step?;
                let next = self.step(&group, schedule.factor(self.state.step))?;
                self.pending.push(next);
                self.state.rows += rows;
                self.state.step += 1;
                let (evaluate, save) = self.due();
                let stop = (evaluate || save || self.is_read()) && self.read()?;
                let improved = evaluate && self.evaluate()?;
                if save || stop || improved {
                    self.save()?;
                }
                if evaluate || save {
                    self.clock = Instant::now();
                }
                if stop {
                    return Ok(());
                }
                if self.state.step == self.total {
                    break;
                }
            }
            if self.state.rows >= self.plan.lengths.len() {
                (self.state.epoch, self.state.rows) = (self.state.epoch + 1, 0);
            }
        }
        self.read().map(drop)
    }

    /// One update from a group of batches. Nothing here waits for the device.
    fn step(&mut self, group: &[Of<T>], factor: f64) -> Result<Pending> {
        let [loss, grad_norm, own] = update(
            self.task,
            group,
            self.settings,
            self.recompute.as_ref(),
            &mut self.optimizer,
            self.ranks,
            (self.state.step, factor),
        )?;
        let sources: Vec<&str> = group.iter().map(|batch| batch.sources.as_str()).collect();
        self.sources = sources.join("; ");
        let mut figures = vec![own, loss, grad_norm];
        if self.settings.scales_dynamically() {
            figures.push(self.optimizer.skipped_steps()?);
        }
        Ok(Pending {
            step: self.state.step + 1,
            figures,
            lr: self.settings.lr() * factor,
            size: group.iter().map(|batch| batch.size).sum(),
            sources: self.sources.clone(),
        })
    }

    /// True if figures are read after this step. A process with others cannot go by its own clock.
    fn is_read(&self) -> bool {
        if self.ranks.are_one() {
            return interrupt::asked() || self.clock.elapsed() >= self.read_interval;
        }
        self.state.step >= self.next_read
    }

    /// Waits for the figures of the steps since the last reading, and writes them down. True if the run shall stop,
    /// since a rank was asked to.
    fn read(&mut self) -> Result<bool> {
        let asked = interrupt::asked();
        let mut steps = std::mem::take(&mut self.pending);
        if steps.is_empty() {
            return Ok(asked);
        }
        let all = numbers(steps.iter().flat_map(|step| &step.figures))?;
        let figures = all.chunks(all.len() / steps.len());
        let mut sums: Vec<f64> = steps.iter().map(|step| step.size as f64).collect();
        sums.extend([f64::from(u8::from(asked)), self.clock.elapsed().as_secs_f64()]);
        self.ranks.sum(&mut sums)?;
        for ((step, size), figures) in steps.iter_mut().zip(&sums).zip(figures.clone()) {
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
        ensure!(
            !loss.is_finite() || self.in_a_row < MOST_SKIPPED,
            "step {step}: the last {MOST_SKIPPED} steps were skipped, since their gradients are not finite at any loss \
             scale, from {sources}. Try 'kind' bf16 or f32"
        );
        if !loss.is_finite() || !(grad_norm.is_finite() || was_skipped) {
            let good = self.last_good()?;
            bail!(
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
        let Some(metrics) = &mut self.metrics else { return Ok(()) };
        metrics.write(*step, &figures)?;
        let unit = self.task.unit();
        let shown = format!("loss {loss:.4} {speed:.0} {unit}/s {memory_mb:.0} MB");
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

    /// A number for the weights.
    fn digest(&self) -> Result<String> {
        let mut digest = Digest::new();
        for (_, weights) in self.tuned.state_dict(DEFAULT_ADAPTER)? {
            let values = weights.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
            let values = Vec::<f32>::try_from(values.f_reshape([-1])?)?;
            values.iter().for_each(|value| digest.add(&value.to_le_bytes()));
        }
        Ok(digest.text())
    }

    fn last_good(&self) -> Result<String> {
        Ok(match checkpoint::steps(&self.settings.out)?.pop() {
            Some(step) => {
                let dir = checkpoint::dir(&self.settings.out, step);
                format!("the last good checkpoint is '{}'", dir.display())
            }
            None => "there is no checkpoint yet".into(),
        })
    }

    fn save(&mut self) -> Result<()> {
        // No loss has seen the last update, and such weights could not be read again.
        for (key, weights) in self.tuned.state_dict(DEFAULT_ADAPTER)? {
            ensure!(
                weights.f_isfinite()?.f_all()?.f_int64_value(&[])? == 1,
                "step {}: '{key}' is NaN or infinite behind the update, from {}; {}. Try a lower 'optimizer.lr' or \
                 'optimizer.weight_decay'",
                self.state.step,
                self.sources,
                self.last_good()?
            );
        }
        if !self.ranks.is_first() {
            return Ok(());
        }
        let out = &self.settings.out;
        checkpoint::save(out, &self.state, self.tuned, &mut self.optimizer)?;
        checkpoint::rotate(out, self.settings.keep_last, self.state.best.map(|best| best.0))?;
        self.draw()
    }

    fn draw(&mut self) -> Result<()> {
        self.drawn = Instant::now();
        let metrics = self.metrics.as_ref();
        metrics.map_or(Ok(()), |metrics| curves::draw(&self.settings.out, metrics))
    }

    /// A line above the bar, or alone where no bar is shown.
    fn say(&self, line: &str) {
        if self.bar.is_hidden() {
            progress::say(line);
        } else {
            self.bar.println(line);
        }
    }

    fn finish(self, out: &Path) -> Result<()> {
        self.bar.finish();
        let step = self.state.step;
        if step < self.total {
            println!("stopped after step {step} of {}; run the same command to resume", self.total);
            return Ok(());
        }
        ensure!(step > 0, "there was nothing to do");
        let adapter = out.join("adapter");
        self.tuned.save_pretrained(&adapter)?;
        self.task.add_files(&adapter)?;
        if self.skipped > 0 {
            println!("{} of {step} steps were skipped by the loss scale", self.skipped);
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        println!("{seconds:.1} s; the adapter is in '{}'", adapter.display());
        if let Some((step, value)) = self.state.best {
            let dir = checkpoint::dir(out, step);
            println!("the lowest eval_loss, {value:.4}, was that of '{}'", dir.display());
        }
        Ok(())
    }
}
