//! The keys and values of what has passed, so that generation computes each token once.

use tch::Tensor;

use crate::error::Result;

/// Keys and values, `[batch, heads, length, head_dim]` each.
pub(in crate::models) type KeysValues = (Tensor, Tensor);

/// Room for `capacity` places per block.
#[derive(Debug)]
pub(in crate::models) struct Cache {
    blocks: Vec<[Option<KeysValues>; 2]>,
    capacity: i64,
    /// The number of places that have passed.
    pub(in crate::models) length: i64,
}

/// The part of one attention.
#[derive(Debug)]
pub(in crate::models) struct Slot<'c> {
    kept: &'c mut Option<KeysValues>,
    capacity: i64,
    length: i64,
}

impl Cache {
    pub(in crate::models) fn new(blocks: usize, capacity: i64) -> Self {
        Cache { blocks: (0..blocks).map(|_| [None, None]).collect(), capacity, length: 0 }
    }

    /// Of a block: its self-attention, and its attention to another sequence.
    pub(in crate::models) fn slots(&mut self, block: usize) -> [Slot<'_>; 2] {
        let (capacity, length) = (self.capacity, self.length);
        self.blocks[block].each_mut().map(|kept| Slot { kept, capacity, length })
    }
}

impl Slot<'_> {
    /// Adds keys and values `[batch, heads, new, head_dim]` and gives all there are; of one that is new, those that it
    /// sees through the window.
    pub(in crate::models) fn extend(
        self,
        keys: &Tensor,
        values: &Tensor,
        window: Option<i64>,
    ) -> Result<KeysValues> {
        let new = keys.size4()?.2;
        let room = |like: &Tensor| -> Result<Tensor> {
            let (batch, heads, _, dim) = like.size4()?;
            let options = (like.f_kind()?, like.device());
            Ok(like.f_new_empty([batch, heads, self.capacity, dim], options)?)
        };
        let (all_keys, all_values) = match self.kept.take() {
            Some(pair) => pair,
            None => (room(keys)?, room(values)?),
        };
        let total = self.length + new;
        let first = window.filter(|_| new == 1).map_or(0, |window| (total - window).max(0));
        let write = |all: &Tensor, part: &Tensor| -> Result<Tensor> {
            all.f_narrow(2, self.length, new)?.f_copy_(part)?;
            Ok(all.f_narrow(2, first, total - first)?)
        };
        let now = (write(&all_keys, keys)?, write(&all_values, values)?);
        *self.kept = Some((all_keys, all_values));
        Ok(now)
    }

    /// The keys and values of another sequence, which are computed once.
    pub(in crate::models) fn once(
        self,
        compute: impl FnOnce() -> Result<KeysValues>,
    ) -> Result<KeysValues> {
        let (keys, values) = match self.kept.take() {
            Some(pair) => pair,
            None => compute()?,
        };
        *self.kept = Some((keys.shallow_clone(), values.shallow_clone()));
        Ok((keys, values))
    }
}
