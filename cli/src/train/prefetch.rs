//! Batches made by worker threads and sent to the device, in order, a few ahead.

use std::collections::VecDeque;
use std::sync::mpsc::{sync_channel, Receiver};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{anyhow, Result};

use super::batches::{Job, Step};
use super::settings::Settings;
use super::task::{Batch, Load, Of, Task};

/// The batches of each worker that wait, on the device: the one that it sends next comes on top.
const AHEAD: usize = 1;

pub struct Prefetch<L: Load> {
    workers: Vec<Receiver<Result<Batch<L::Inputs>>>>,
    threads: Vec<JoinHandle<()>>,
    next: usize,
    count: usize,
}

impl<L: Load> Prefetch<L> {
    pub fn new(loader: &Arc<L>, jobs: Vec<Job>, workers: usize) -> Self {
        let count = jobs.len();
        let mut shares: Vec<Vec<Job>> = vec![Vec::new(); workers.min(count).max(1)];
        let all = shares.len();
        for (place, job) in jobs.into_iter().enumerate() {
            shares[place % all].push(job);
        }
        let start = |share: Vec<Job>| {
            let (sender, receiver) = sync_channel(AHEAD);
            let loader = loader.clone();
            let thread = thread::spawn(move || {
                for job in share {
                    // Nobody listens any more: the run has ended.
                    if sender.send(loader.load(&job)).is_err() {
                        break;
                    }
                }
            });
            (receiver, thread)
        };
        let (workers, threads) = shares.into_iter().map(start).unzip();
        Prefetch { workers, threads, next: 0, count }
    }
}

impl<L: Load> Iterator for Prefetch<L> {
    type Item = Result<Batch<L::Inputs>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.count {
            return None;
        }
        let batch = self.workers[self.next % self.workers.len()].recv();
        self.next += 1;
        Some(batch.unwrap_or_else(|_| Err(anyhow!("a thread that makes batches has panicked"))))
    }
}

/// Waits for the workers: at the end of the process none may be on its way to the device.
impl<L: Load> Drop for Prefetch<L> {
    fn drop(&mut self) {
        self.workers.clear();
        for thread in self.threads.drain(..) {
            // A panic of it was reported as an error.
            let _ = thread.join();
        }
    }
}

/// The batches of this rank in each of some steps, with the number of rows of all ranks.
pub struct Batches<T: Task> {
    /// The rows of all ranks, and the batches of this one.
    steps: VecDeque<(usize, usize)>,
    batches: Prefetch<T::Loader>,
}

impl<T: Task> Batches<T> {
    /// Those of the first steps, `most` at most.
    pub fn new(task: &T, settings: &Settings, steps: Vec<Step>, most: usize) -> Self {
        let (mut jobs, mut counts) = (Vec::new(), VecDeque::new());
        for step in steps.into_iter().take(most) {
            counts.push_back((step.rows, step.own.len()));
            jobs.extend(step.own);
        }
        let batches = Prefetch::new(&task.loader(), jobs, settings.workers);
        Batches { steps: counts, batches }
    }
}

impl<T: Task> Iterator for Batches<T> {
    type Item = Result<(usize, Vec<Of<T>>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let (rows, count) = self.steps.pop_front()?;
        let group = self.batches.by_ref().take(count).collect::<Result<Vec<_>>>();
        Some(group.map(|group| (rows, group)))
    }
}
