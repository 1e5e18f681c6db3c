//! The training loop.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use ln_tuning::recompute::Recompute;
use ln_tuning::{LnTuningModel, Optimizer, Schedule};
use tch::nn::VarStore;
use tch::{Device, Tensor};

use super::batches::{Plan, Share};
use super::checkpoint::{self, State};
use super::graphs::Graphs;
use super::metrics::Metrics;
use super::prefetch::Batches;
use super::ranks::Ranks;
use super::settings::Settings;
use super::task::{Extent, Of, Task};
use super::update::{self, update};
use super::{interrupt, same};
use crate::progress;

/// Time between two readings of what a GPU has computed.
const READ: Duration = Duration::from_secs(1);
/// One adapter that trains, on its own data and with its own settings.
pub(super) struct Run<'a, T: Task> {
    task: &'a T,
    /// The words that tell it from other runs beside it; nothing if it is alone.
    name: String,
    /// The name of its adapter.
    adapter: String,
    pub(super) optimizer: Optimizer,
    settings: &'a Settings,
    ranks: &'a Ranks,
    pub(super) state: State,
    total: u64,
    plan: Plan,
    /// Those of the present epoch.
    batches: Option<Batches<T>>,
    schedule: Schedule,
    recompute: Option<Recompute>,
    /// Of steps that are replayed, if any shall be.
    graphs: Option<Graphs>,
    /// Of rank 0.
    pub(super) metrics: Option<Metrics>,
    device: Device,
    /// Steps skipped so far, and in a row, by dynamic loss scaling.
    skipped: u64,
    in_a_row: u64,
    /// Steps whose figures have not been read yet.
    pending: Vec<figures::Pending>,
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

/// A run that has passed the preflight, with its weights and moments loaded.
pub struct Ready<'a, T> {
    pub task: &'a T,
    pub name: String,
    pub adapter: String,
    pub optimizer: Optimizer,
    pub settings: &'a Settings,
    pub ranks: &'a Ranks,
    pub plan: Plan,
    pub state: State,
    /// Steps from the beginning to the end.
    pub total: u64,
}

/// The end of a run whose numbers are not finite any more, or whose loss scale finds none that are. The settings or the
/// data are to blame: other runs may go on.
#[derive(Debug)]
pub(super) struct Diverged(String);

impl fmt::Display for Diverged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Diverged {}

macro_rules! diverged {
    ($($words:tt)*) => {
        return Err(Diverged(format!($($words)*)).into())
    };
}

mod due;
mod figures;
mod files;

/// The order of the data: its seed, the rows that stand together, and the batches of a step.
pub(super) type Order = (Option<u64>, usize, Share);

/// Rows of a step of all ranks, and the batches of this one.
pub(super) type Group<T> = (usize, Vec<Of<T>>);

/// Trains from the state of the run to the last step, or until a signal; true at the last step.
pub fn train<T: Task>(ready: Ready<T>, vs: &VarStore, tuned: &LnTuningModel) -> Result<bool> {
    let ranks = ready.ranks;
    let bar = progress::steps(ready.total, ready.state.step)?;
    let mut run = Run::begin(ready, vs.device(), bar)?;
    ranks.stepping(|| run.whole(tuned))?;
    same::check(ranks, tuned, &run.adapter)?;
    let ended = !run.is_unfinished();
    let finished = if ranks.is_first() { run.finish(tuned) } else { Ok(()) };
    ranks.agree(finished)?;
    Ok(ended)
}

impl<'a, T: Task> Run<'a, T> {
    pub(super) fn begin(ready: Ready<'a, T>, device: Device, bar: ProgressBar) -> Result<Self> {
        let Ready { task, name, adapter, optimizer, settings, ranks, plan, state, total } = ready;
        let out = settings.out.as_path();
        let open = || -> Result<Metrics> {
            std::fs::create_dir_all(out)
                .with_context(|| format!("cannot make '{}'", out.display()))?;
            checkpoint::rotate(out, settings.keep_last, state.best.map(|best| best.0))?;
            Metrics::open(out, state.step, settings.tensorboard)
        };
        let metrics = ranks.agree(ranks.is_first().then(open).transpose())?;
        Ok(Run {
            metrics,
            device,
            skipped: u64::try_from(optimizer.skipped_steps()?.f_int64_value(&[])?)?,
            in_a_row: 0,
            pending: Vec::new(),
            sources: String::new(),
            next_read: state.step + 1,
            // A CPU has done its work when it comes back.
            read_interval: if device == Device::Cpu { Duration::ZERO } else { READ },
            clock: Instant::now(),
            bar,
            begun: Instant::now(),
            drawn: Instant::now(),
            said: Instant::now(),
            task,
            name,
            adapter,
            optimizer,
            settings,
            ranks,
            state,
            total,
            plan,
            batches: None,
            schedule: settings.schedule(total),
            recompute: settings.recompute()?,
            graphs: Graphs::new(settings)?,
        })
    }

    fn whole(&mut self, tuned: &LnTuningModel) -> Result<()> {
        let _steps = interrupt::Steps::begin();
        self.clock = Instant::now();
        while self.is_unfinished() {
            let group = self.group()?;
            self.step(&group)?;
            let (save, stop) = self.settle()?;
            if save {
                self.save(tuned)?;
                self.rotate()?;
            }
            if stop {
                return Ok(());
            }
        }
        self.read().map(drop)
    }

    pub(super) fn is_unfinished(&self) -> bool {
        self.state.step < self.total
    }

    pub(super) fn adapter(&self) -> &str {
        &self.adapter
    }

    pub(super) fn settings(&self) -> &Settings {
        self.settings
    }

    pub(super) fn task(&self) -> &'a T {
        self.task
    }

    pub(super) fn recompute(&self) -> Option<Recompute> {
        self.recompute
    }

    /// The room of each of these batches where they go through the model together with those of other runs; nothing if
    /// they go alone.
    pub(super) fn extents(&self, (_, group): &Group<T>) -> Vec<Extent> {
        let extents = group.iter().map(|batch| self.task.extent(batch));
        extents.collect::<Result<Vec<_>, _>>().unwrap_or_default()
    }

    /// All that decides which rows stand in which batches.
    pub(super) fn order(&self) -> Order {
        (self.plan.seed, self.plan.group, self.plan.share)
    }

    /// The epoch, and its rows that are behind the run.
    pub(super) fn place(&mut self) -> (u64, usize) {
        if self.state.rows >= self.plan.lengths.len() {
            (self.state.epoch, self.state.rows) = (self.state.epoch + 1, 0);
            self.batches = None;
        }
        (self.state.epoch, self.state.rows)
    }

    /// The batches of the next step.
    pub(super) fn group(&mut self) -> Result<Group<T>> {
        let (epoch, rows) = self.place();
        let begin = || {
            let steps = self.plan.steps(epoch, rows);
            Batches::new(self.task, self.settings, steps, usize::MAX)
        };
        self.batches.get_or_insert_with(begin).next().context("an epoch without steps")?
    }

    /// One update from a group of batches. Nothing here waits for the device.
    pub(super) fn step(&mut self, group: &Group<T>) -> Result<()> {
        let at = (self.state.step, self.schedule.factor(self.state.step));
        let (task, settings, optimizer) = (self.task, self.settings, &mut self.optimizer);
        let graphed = match (&mut self.graphs, &*group.1) {
            (Some(graphs), [batch]) => graphs.update(task, batch, settings, optimizer, at)?,
            _ => None,
        };
        let figures = match graphed {
            Some(figures) => figures,
            None => {
                let recompute = self.recompute.as_ref();
                update(task, &group.1, settings, recompute, optimizer, self.ranks, at)?
            }
        };
        if let Some(line) = self.graphs.as_mut().and_then(Graphs::unsaid) {
            self.say(&line);
        }
        self.stepped(group, figures)
    }

    /// Begins an update whose gradients come from elsewhere.
    pub(super) fn begin_update(&mut self) -> Result<()> {
        let factor = self.schedule.factor(self.state.step);
        update::begin(self.settings, &mut self.optimizer, factor)
    }

    /// Adds the gradient of this rank's batches, and gives their mean loss. Its adapter is active.
    pub(super) fn backward(&mut self, (_, group): &Group<T>) -> Result<Tensor> {
        let recompute = self.recompute.as_ref();
        let (optimizer, step) = (&mut self.optimizer, self.state.step);
        let (task, settings) = (self.task, self.settings);
        let own = update::of_rank(task, group, settings, recompute, optimizer, self.ranks, step)?;
        Ok(own.0)
    }

    /// Ends an update whose gradients are there, of batches with this loss, on all ranks and on this one.
    pub(super) fn end_update(&mut self, group: &Group<T>, loss: Tensor, own: Tensor) -> Result<()> {
        let grad_norm = update::end(self.settings, &mut self.optimizer)?;
        self.stepped(group, [loss, grad_norm, own])
    }

    /// Counts a step that was made, with its loss, gradient norm, and the loss of this rank.
    fn stepped(&mut self, (rows, group): &Group<T>, figures: [Tensor; 3]) -> Result<()> {
        let [loss, grad_norm, own] = figures;
        let sources: Vec<&str> = group.iter().map(|batch| batch.sources.as_str()).collect();
        self.sources = sources.join("; ");
        let mut figures = vec![own, loss, grad_norm];
        if self.settings.scales_dynamically() {
            figures.push(self.optimizer.skipped_steps()?);
        }
        let lr = self.settings.lr() * self.schedule.factor(self.state.step);
        self.state.rows += rows;
        self.state.step += 1;
        self.pending.push(figures::Pending {
            step: self.state.step,
            figures,
            lr,
            size: group.iter().map(|batch| batch.size).sum(),
            sources: self.sources.clone(),
        });
        Ok(())
    }

    fn prefix(&self) -> String {
        if self.name.is_empty() {
            return String::new();
        }
        format!("{}: ", self.name)
    }

    /// A line above the bar, or alone where no bar is shown.
    pub(super) fn say(&self, line: &str) {
        let line = format!("{}{line}", self.prefix());
        if self.bar.is_hidden() {
            progress::say(line);
        } else {
            self.bar.println(line);
        }
    }
}
