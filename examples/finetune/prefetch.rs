//! Batches made by worker threads, in order, a few ahead.

use std::sync::mpsc::{sync_channel, Receiver};
use std::sync::Arc;

use anyhow::{anyhow, Result};
use tch::{Device, Tensor};

use super::task::Load;

/// How many batches each worker may be ahead.
const AHEAD: usize = 2;

pub struct Prefetch<L: Load> {
    workers: Vec<Receiver<Result<L::Batch>>>,
    next: usize,
    count: usize,
}

impl<L: Load> Prefetch<L> {
    pub fn new(loader: &Arc<L>, jobs: Vec<L::Job>, workers: usize) -> Self {
        let count = jobs.len();
        let mut shares: Vec<Vec<L::Job>> = vec![Vec::new(); workers.min(count).max(1)];
        let all = shares.len();
        for (place, job) in jobs.into_iter().enumerate() {
            shares[place % all].push(job);
        }
        let start = |share: Vec<L::Job>| {
            let (sender, receiver) = sync_channel(AHEAD);
            let loader = loader.clone();
            std::thread::spawn(move || {
                for job in share {
                    // Nobody listens any more: the run has ended.
                    if sender.send(loader.load(&job)).is_err() {
                        break;
                    }
                }
            });
            receiver
        };
        Prefetch { workers: shares.into_iter().map(start).collect(), next: 0, count }
    }
}

impl<L: Load> Iterator for Prefetch<L> {
    type Item = Result<L::Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.count {
            return None;
        }
        let batch = self.workers[self.next % self.workers.len()].recv();
        self.next += 1;
        Some(batch.unwrap_or_else(|_| Err(anyhow!("a thread that makes batches has panicked"))))
    }
}

/// To the device, from memory that it can read while the CPU goes on.
pub fn to_device(tensor: &Tensor, device: Device) -> Result<Tensor> {
    match device {
        Device::Cuda(_) => {
            let pinned = tensor.f_pin_memory(device)?;
            Ok(pinned.f_to_device_(device, tensor.f_kind()?, true, false)?)
        }
        _ => Ok(tensor.f_to_device(device)?),
    }
}
