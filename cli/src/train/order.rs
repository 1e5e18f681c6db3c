//! Orders and random numbers that depend on a seed and a position only, so that a resumed run draws the same.

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Random(u64);

impl Random {
    /// Independent numbers for each `stream` of a seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = Random(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Fisher and Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}

/// Streams of random numbers.
pub const SPLIT: u64 = 1;
/// The epochs' orders, from here on.
pub const EPOCHS: u64 = 1 << 32;

/// The seed of libtorch's generators in one step, for dropout. Each rank has its own.
pub fn step_seed(seed: u64, step: u64, rank: usize) -> i64 {
    let stream = step.wrapping_add(1 << 48).wrapping_add((rank as u64) << 52);
    (Random::new(seed, stream).next() >> 1) as i64
}

/// A part of the numbers below `count`, chosen by the seed, and the rest; both in ascending order.
pub fn split(count: usize, fraction: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut all: Vec<usize> = (0..count).collect();
    Random::new(seed, SPLIT).shuffle(&mut all);
    let mut part = all.split_off(count - (count as f64 * fraction).round() as usize);
    part.sort_unstable();
    all.sort_unstable();
    (part, all)
}
