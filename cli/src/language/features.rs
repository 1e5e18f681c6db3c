//! The output of a frozen tower for pictures, kept so that each is seen once.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ln_tuning::Result;
use tch::Tensor;

use super::pictures::Picture;

/// A picture of the data: a file, or a record and a number in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    File(PathBuf),
    Held { eval: bool, record: u32, number: usize },
}

impl Key {
    pub fn of(picture: &Picture, eval: bool, record: u32, number: usize) -> Self {
        match picture {
            Picture::File(path) => Key::File(path.clone()),
            Picture::Bytes(_) => Key::Held { eval, record, number },
        }
    }
}

/// The first ones are kept, on the model's device, until there is no space left: rows come in another order in each
/// epoch, so that none is better than another.
pub struct Features {
    most: u64,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    bytes: u64,
    tensors: HashMap<Key, Tensor>,
}

impl Features {
    /// `most` bytes.
    pub fn new(most: u64) -> Self {
        Features { most, kept: Mutex::default() }
    }

    pub fn get(&self, key: &Key) -> Option<Tensor> {
        self.lock().tensors.get(key).map(Tensor::shallow_clone)
    }

    /// Keeps those of a picture, if there is space for them.
    pub fn keep(&self, key: &Key, features: &Tensor) -> Result<()> {
        let bytes = features.numel() as u64 * features.f_kind()?.elt_size_in_bytes() as u64;
        let mut kept = self.lock();
        let fits = kept.bytes + bytes <= self.most;
        if fits && kept.tensors.insert(key.clone(), features.shallow_clone()).is_none() {
            kept.bytes += bytes;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn features_are_kept_while_there_is_space() {
        let features = Features::new(100);
        let key = |number| Key::Held { eval: false, record: 0, number };
        let tensor = |size: i64| Tensor::zeros([size], (Kind::Float, Device::Cpu));
        for (number, size) in [(0, 20), (0, 20), (1, 6), (2, 5)] {
            features.keep(&key(number), &tensor(size)).unwrap();
        }
        let kept = [0, 1, 2].map(|number| features.get(&key(number)).is_some());
        assert_eq!(kept, [true, false, true]);
    }
}
