//! The course of several runs, step by step, from their common checkpoint to the last step.

use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use indicatif::ProgressBar;
use ln_tuning::LnTuningModel;
use tch::nn::VarStore;
use tch::Device;

use super::members::Several;
use super::record::{Record, Stopped};
use super::{halving, picture, together};
use crate::progress;
use crate::train::interrupt;
use crate::train::metrics::Metrics;
use crate::train::task::Task;
use crate::train::trainer::{Diverged, Group, Order, Ready, Run};

/// Time between two drawings of the curves.
const REDRAW: Duration = Duration::from_secs(5);

pub(super) struct Course<'a, T: Task> {
    runs: Vec<Seat<'a, T>>,
    record: Record,
    /// The steps at which half of the runs stops.
    rungs: Vec<u64>,
    /// Rows of several runs go through the model together.
    together: bool,
    device: Device,
    bar: ProgressBar,
    begun: Instant,
    drawn: Instant,
}

/// The place of a run among the others.
struct Seat<'a, T: Task> {
    /// The number of its task.
    task: usize,
    state: Going<'a, T>,
}

enum Going<'a, T: Task> {
    On(Box<Run<'a, T>>),
    /// Stopped early.
    Stopped(Metrics),
}

/// The place of a step's batches: the number of the task, their order, the epoch and its rows before.
type Place = (usize, Order, (u64, usize));

/// A run before it begins: ready, or stopped earlier.
pub(super) enum Begun<'a, T> {
    Ready(Box<Ready<'a, T>>),
    Stopped(Metrics),
}

impl<T: Task> Seat<'_, T> {
    fn metrics(&self) -> Option<&Metrics> {
        match &self.state {
            Going::On(run) => run.metrics.as_ref(),
            Going::Stopped(metrics) => Some(metrics),
        }
    }
}

/// Trains all of these runs, each with the number of its task.
pub(super) fn train<T: Task, D>(
    several: &Several<D>,
    begun: Vec<(usize, Begun<T>)>,
    record: Record,
    rungs: Vec<u64>,
    together: bool,
    vs: &VarStore,
    tuned: &mut LnTuningModel,
) -> Result<()> {
    let ready = |begun: &Begun<T>| match begun {
        Begun::Ready(ready) => Some((ready.total, ready.state.step)),
        Begun::Stopped(_) => None,
    };
    let positions: Vec<(u64, u64)> = begun.iter().filter_map(|(_, begun)| ready(begun)).collect();
    let total = positions.iter().map(|(total, _)| *total).max().unwrap_or(0);
    let done = positions.iter().map(|(_, step)| *step).max().unwrap_or(0);
    let bar = progress::steps(total, done)?;
    let mut runs = Vec::new();
    for (task, begun) in begun {
        let state = match begun {
            Begun::Ready(ready) => {
                Going::On(Box::new(Run::begin(*ready, vs.device(), bar.clone())?))
            }
            Begun::Stopped(metrics) => Going::Stopped(metrics),
        };
        runs.push(Seat { task, state });
    }
    let now = Instant::now();
    let device = vs.device();
    let mut course = Course { runs, record, rungs, together, device, bar, begun: now, drawn: now };
    course.record.write(&several.out)?;
    let _steps = interrupt::Steps::begin();
    let mut stop = false;
    while !stop && course.runs.iter().any(|seat| seat.goes_on().is_some()) {
        course.halve(several)?;
        stop = course.round(several, tuned)?;
    }
    course.bar.finish();
    course.draw(several)?;
    if stop && course.runs.iter().any(|seat| seat.goes_on().is_some()) {
        println!("stopped after step {} of {total}; run the same command to resume", course.step());
        return Ok(());
    }
    course.finish(several, tuned)
}

impl<'a, T: Task> Seat<'a, T> {
    /// The run, if it has steps to make.
    fn goes_on(&self) -> Option<&Run<'a, T>> {
        match &self.state {
            Going::On(run) if run.is_unfinished() => Some(run),
            _ => None,
        }
    }
}

impl<T: Task> Course<'_, T> {
    /// Steps that the runs have made that go on.
    fn step(&self) -> u64 {
        self.runs.iter().filter_map(|seat| Some(seat.goes_on()?.state.step)).max().unwrap_or(0)
    }

    /// One step of each run, and what is due behind it. True if Ctrl-C asked for an end.
    fn round<D>(&mut self, several: &Several<D>, tuned: &mut LnTuningModel) -> Result<bool> {
        // Runs of one task with one order of the data share their batches.
        let mut shared: Vec<(Place, Group<T>)> = Vec::new();
        let mut went = Vec::new();
        for (at, Seat { task, state }) in self.runs.iter_mut().enumerate() {
            let Going::On(run) = state else { continue };
            if !run.is_unfinished() {
                continue;
            }
            let place = (*task, run.order(), run.place());
            let known = shared.iter().position(|(other, _)| *other == place);
            let group = match known {
                Some(known) => known,
                None => {
                    shared.push((place, run.group()?));
                    shared.len() - 1
                }
            };
            went.push((at, group));
        }
        let mut groups = went.iter();
        let mut next = groups.next();
        let mut runs = Vec::with_capacity(went.len());
        for (at, Seat { state, .. }) in self.runs.iter_mut().enumerate() {
            let Some((_, group)) = next.filter(|(next, _)| *next == at) else { continue };
            next = groups.next();
            if let Going::On(run) = state {
                runs.push((&mut **run, &shared[*group].1));
            }
        }
        if self.together {
            together::step(runs, self.device, tuned)?;
        } else {
            for (run, group) in runs {
                tuned.set_adapter(run.adapter())?;
                run.step(group)?;
            }
        }
        let went: Vec<usize> = went.into_iter().map(|(at, _)| at).collect();
        let (mut save, mut stop) = (false, false);
        for at in &went {
            let Going::On(run) = &mut self.runs[*at].state else { continue };
            if run.evaluates() {
                tuned.set_adapter(run.adapter())?;
            }
            let due = run.settle();
            let (own_save, own_stop) = self.or_stopped(*at, due, several)?.unwrap_or_default();
            (save, stop) = (save || own_save, stop || own_stop);
        }
        if save {
            // Of all runs at one step, so that all go on from there.
            for at in &went {
                let Going::On(run) = &mut self.runs[*at].state else { continue };
                let saved = run.save(tuned);
                self.or_stopped(*at, saved, several)?;
            }
            for at in &went {
                if let Going::On(run) = &mut self.runs[*at].state {
                    run.rotate()?;
                }
            }
        }
        if save || self.drawn.elapsed() >= REDRAW {
            self.draw(several)?;
        }
        Ok(stop)
    }

    /// The value that a run gave; nothing if it has diverged, which stops it and no other.
    fn or_stopped<D, V>(
        &mut self,
        at: usize,
        given: Result<V>,
        several: &Several<D>,
    ) -> Result<Option<V>> {
        let error = match given {
            Ok(value) => return Ok(Some(value)),
            Err(error) => error,
        };
        match error.downcast::<Diverged>() {
            Ok(diverged) => {
                self.stop(at, diverged.to_string(), several)?;
                self.record.write(&several.out)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Stops a run for good. The caller writes the record.
    fn stop<D>(&mut self, at: usize, reason: String, several: &Several<D>) -> Result<()> {
        let Going::On(run) = &self.runs[at].state else { return Ok(()) };
        let step = run.state.step;
        run.say(&format!("stopped behind step {step}: {reason}"));
        // Read again: the run goes, with its file.
        let metrics = Metrics::open(&several.members[at].run.common.out, step, false)?;
        self.runs[at].state = Going::Stopped(metrics);
        self.record.runs[at].stopped = Some(Stopped { step, reason });
        Ok(())
    }

    /// Stops the worse half of the runs, if this is a step for that.
    fn halve<D>(&mut self, several: &Several<D>) -> Result<()> {
        let step = self.step();
        if self.rungs.first().is_none_or(|rung| *rung != step) {
            return Ok(());
        }
        self.rungs.remove(0);
        self.record.halved = step;
        let left: Vec<usize> =
            (0..self.runs.len()).filter(|at| self.runs[*at].goes_on().is_some()).collect();
        let mut values = Vec::with_capacity(left.len());
        for at in &left {
            self.record.score(*at, self.runs[*at].metrics());
            values.push(self.record.runs[*at].value());
        }
        let best = values.iter().copied().fold(f64::INFINITY, f64::min);
        for place in halving::worse(&values) {
            let reason = format!("its loss is {:.4}, and the lowest {best:.4}", values[place]);
            self.stop(left[place], reason, several)?;
        }
        // In one piece: a run that goes on from here finds all of it decided, or nothing.
        self.record.write(&several.out)
    }

    fn draw<D>(&mut self, several: &Several<D>) -> Result<()> {
        self.drawn = Instant::now();
        let names = several.members.iter().map(|member| member.name.as_str());
        let runs = names.zip(self.runs.iter().map(Seat::metrics));
        picture::draw(&several.out, runs.filter_map(|(name, metrics)| Some((name, metrics?))))
    }

    /// Saves the best adapter, or all, and shows how the runs went.
    fn finish<D>(mut self, several: &Several<D>, tuned: &LnTuningModel) -> Result<()> {
        for (at, seat) in self.runs.iter().enumerate() {
            self.record.score(at, seat.metrics());
        }
        let best = self.record.best().filter(|_| several.compares());
        self.record.best = best.map(|best| several.members[best].name.clone());
        self.record.write(&several.out)?;
        print!("{}", self.record.table());
        for (at, seat) in self.runs.iter().enumerate() {
            let Going::On(run) = &seat.state else { continue };
            let own = several.members[at].run.common.out.join("adapter");
            if several.keeps_all() {
                run.write_adapter(tuned, &own)?;
            }
            if Some(at) == best {
                run.write_adapter(tuned, &several.out.join("adapter"))?;
            }
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        if several.keeps_all() {
            println!(
                "{seconds:.1} s; each adapter is in its folder below '{}'",
                several.out.display()
            );
        }
        if several.compares() {
            let reasons = self.record.runs.iter().filter_map(|run| run.stopped.as_ref());
            let best = best.with_context(|| {
                let first = reasons.map(|stopped| stopped.reason.as_str()).next();
                format!("no run came to its end: {}", first.unwrap_or("none has a loss"))
            })?;
            let adapter = several.out.join("adapter");
            let name = &several.members[best].name;
            println!(
                "{seconds:.1} s; the best is {name}, whose adapter is in '{}'",
                adapter.display()
            );
            return Ok(());
        }
        let ended = self.record.runs.iter().find_map(|run| Some((run, run.stopped.as_ref()?)));
        let Some((run, stopped)) = ended else { return Ok(()) };
        bail!("'{}' stopped behind step {}: {}", run.name, stopped.step, stopped.reason)
    }
}
