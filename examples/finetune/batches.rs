//! Which items make up a batch.

use super::order::Random;

/// Batches are sought among so many of them.
const WINDOW: usize = 50;

/// Batches of `size` items, which are given by their lengths: in order or, with random numbers, in a random order with
/// items of about the same length together, so that little is padded.
pub fn plan(lengths: &[u32], size: usize, random: Option<Random>) -> Vec<Vec<usize>> {
    let mut items: Vec<usize> = (0..lengths.len()).collect();
    let Some(mut random) = random else {
        return items.chunks(size).map(<[usize]>::to_vec).collect();
    };
    random.shuffle(&mut items);
    for window in items.chunks_mut(size * WINDOW) {
        window.sort_by_key(|item| lengths[*item]);
    }
    let mut batches: Vec<Vec<usize>> = items.chunks(size).map(<[usize]>::to_vec).collect();
    random.shuffle(&mut batches);
    batches
}
