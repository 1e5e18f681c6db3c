//! The batches of a run: the rows that each is made of.

use super::order::{Random, EPOCHS};

/// Rows of about the same length are sought among so many batches.
const WINDOW: usize = 50;

/// The rows of a batch, by their numbers in the data to train or to evaluate on.
#[derive(Debug, Clone)]
pub struct Job {
    pub eval: bool,
    pub rows: Vec<usize>,
}

/// The order in which rows are trained on.
pub struct Plan {
    /// Of each row.
    pub lengths: Vec<u32>,
    /// Rows in a batch.
    pub size: usize,
    /// Without one, rows come in the order of the file.
    pub seed: Option<u64>,
}

impl Plan {
    /// The batches of an epoch, always as many: in order or, with a seed, in a random order with rows of about the same
    /// length together, so that little is padded.
    pub fn epoch(&self, epoch: u64) -> Vec<Job> {
        let job = |rows: &[usize]| Job { eval: false, rows: rows.to_vec() };
        let mut rows: Vec<usize> = (0..self.lengths.len()).collect();
        let Some(seed) = self.seed else {
            return rows.chunks(self.size).map(job).collect();
        };
        let mut random = Random::new(seed, EPOCHS + epoch);
        random.shuffle(&mut rows);
        for window in rows.chunks_mut(self.size * WINDOW) {
            window.sort_by_key(|row| self.lengths[*row]);
        }
        let mut batches: Vec<Job> = rows.chunks(self.size).map(job).collect();
        random.shuffle(&mut batches);
        batches
    }
}

/// The batches of an evaluation on `count` rows.
pub fn evaluation(count: usize, size: usize) -> Vec<Job> {
    let rows: Vec<usize> = (0..count).collect();
    rows.chunks(size).map(|rows| Job { eval: true, rows: rows.to_vec() }).collect()
}
