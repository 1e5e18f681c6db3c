//! Parts of files' maps that are read ahead of use, on a thread of its own, and dropped behind it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::thread::JoinHandle;

use tch::Tensor;

use crate::error::{refusal, refuse, Result};
use crate::pages::{file_maps, Pages};

const NONE: usize = usize::MAX;

/// The parts, the thread, and what it needs to know.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    parts: Arc<[Vec<Pages>]>,
    wanted: Arc<Wanted>,
    /// The parts that may be in memory, or on their way there: all at first, for loading reads a little of each.
    held: Vec<usize>,
    /// The parts to fetch. The thread ends with it.
    jobs: Option<Sender<usize>>,
    /// The parts that were left while they were fetched, so that some of their pages came late.
    late: Receiver<usize>,
    thread: Option<JoinHandle<()>>,
}

/// The part that is in use, and the one to come.
#[derive(Debug)]
struct Wanted([AtomicUsize; 2]);

impl Wanted {
    fn set(&self, parts: [usize; 2]) {
        self.0.iter().zip(parts).for_each(|(place, part)| place.store(part, Ordering::SeqCst));
    }

    fn holds(&self, part: usize) -> bool {
        self.0.iter().any(|place| place.load(Ordering::SeqCst) == part)
    }
}

impl ReadAhead {
    /// The parts, each of several tensors with their names. A tensor that is no part of a file's map, such as one whose
    /// rows were brought to another order, stays in memory.
    ///
    /// # Errors
    /// `Unsupported` if all are such; `Io` where the system does not tell pages of files
    /// from others.
    pub(crate) fn of(parts: &[Vec<(String, Tensor)>]) -> Result<Self> {
        let maps = file_maps()?;
        let pages = |(_, tensor): &(String, Tensor)| {
            Ok(Pages::of(tensor)?.filter(|pages| pages.is_in(&maps)))
        };
        let of_part = |part: &Vec<_>| {
            part.iter().filter_map(|matrix| pages(matrix).transpose()).collect::<Result<Vec<_>>>()
        };
        let found = parts.iter().map(of_part).collect::<Result<Arc<[_]>>>()?;
        if found.iter().all(Vec::is_empty) {
            let name = parts.iter().flatten().next().map_or("", |(name, _)| name.as_str());
            refuse!(
                Unsupported,
                "'{name}' cannot be streamed from disk, and no other matrix can: they are in memory in another form than \
                 in the file. Leave out 'streamed', or choose a form that the file has: 'streamed' alone, or 'gguf, \
                 streamed' for a GGUF file"
            );
        }
        let parts: Arc<[Vec<Pages>]> = found;
        // Memory could never be given back if the page table cannot be read.
        parts.iter().flatten().take(1).try_for_each(Pages::give_back)?;
        let wanted = Arc::new(Wanted([NONE, NONE].map(AtomicUsize::new)));
        let ((jobs, asked), (left, late)) = (channel::<usize>(), channel());
        let (all, known) = (parts.clone(), wanted.clone());
        let work = move || {
            for part in asked {
                for pages in all.get(part).into_iter().flatten() {
                    pages.fetch(|| known.holds(part));
                }
                if !known.holds(part) {
                    // Not given back here, where another thread may write to it. There is nobody to tell at the end.
                    let _ = left.send(part);
                }
            }
        };
        let thread = std::thread::Builder::new().name("read ahead".into()).spawn(work);
        let thread =
            thread.map_err(|e| refusal!(Unsupported, "no thread to read ahead on").caused_by(e))?;
        let held = (0..parts.len()).collect();
        Ok(ReadAhead { parts, wanted, held, jobs: Some(jobs), late, thread: Some(thread) })
    }

    /// A part is in use from now on, and another one comes next: it is fetched, and nothing waits for it. All others
    /// are given back.
    pub(crate) fn enter(&mut self, part: usize, next: Option<usize>) -> Result<()> {
        let wanted: Vec<usize> = [Some(part), next].into_iter().flatten().collect();
        self.wanted.set([part, next.unwrap_or(NONE)]);
        let held = std::mem::replace(&mut self.held, wanted.clone());
        // First, so that memory is there for the one to come.
        let left = held.iter().copied().chain(self.late.try_iter());
        let left = left.filter(|left| !wanted.contains(left));
        let left = left.filter_map(|left| self.parts.get(left));
        left.flatten().try_for_each(Pages::give_back)?;
        // At first, parts are held of which a little has been read.
        let first = held.len() > 2;
        for part in wanted.into_iter().filter(|part| first || !held.contains(part)) {
            // The thread ends with its sender only.
            let _ = self.jobs.as_ref().map(|jobs| jobs.send(part));
        }
        Ok(())
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.wanted.set([NONE, NONE]);
        self.jobs = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
