//! The context of one pass, which all blocks share: angles, masks, dropout or not.

use tch::{Kind, Tensor};

use super::mask::Mask;
use super::rows::Rows;
use crate::error::Result;

#[derive(Debug)]
pub(in crate::models) struct Context {
    /// True if dropout is applied.
    pub(in crate::models) train: bool,
    /// Per rope, cosines and sines.
    pub(in crate::models) angles: Vec<(Tensor, Tensor)>,
    /// Of self-attention, per window that occurs; `None` is the one without a window.
    masks: Vec<(Option<i64>, Mask)>,
    /// Of attention to another sequence.
    pub(in crate::models) across: Mask,
    /// Added to what the first blocks give, `[batch, length, size]` each.
    pub(in crate::models) added: Vec<Tensor>,
    /// The adapters of the rows, where these have their own: blocks that run again have the same.
    pub(super) rows: Option<Rows>,
}

impl Context {
    /// One mask for all blocks, whose hidden states are of this kind.
    pub(in crate::models) fn new(train: bool, kind: Kind, mask: Mask) -> Result<Self> {
        let masks = vec![(None, mask.ready(kind, (1, 1))?)];
        Ok(Context::with_windows(train, masks, Vec::new()))
    }

    /// A mask per window, and angles per rope.
    pub(in crate::models) fn with_windows(
        train: bool,
        masks: Vec<(Option<i64>, Mask)>,
        angles: Vec<(Tensor, Tensor)>,
    ) -> Self {
        let (added, rows) = (Vec::new(), Rows::current());
        Context { train, angles, masks, across: Mask::Everything, added, rows }
    }

    /// The output of the block at this place, with what is added to it.
    pub(in crate::models) fn behind(&self, place: usize, hidden: Tensor) -> Result<Tensor> {
        match self.added.get(place) {
            Some(added) => Ok(hidden.f_add(added)?),
            None => Ok(hidden),
        }
    }

    /// True if something is added to the output of the block at this place.
    pub(super) fn adds_behind(&self, place: usize) -> bool {
        place < self.added.len()
    }

    pub(in crate::models) fn mask(&self, window: Option<i64>) -> &Mask {
        let found = self.masks.iter().find(|(known, _)| *known == window);
        found.map_or(&Mask::Everything, |(_, mask)| mask)
    }
}
