//! The context of one pass, which all blocks share: angles, masks, dropout or not.

use tch::Tensor;

use super::mask::Mask;

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
}

impl Context {
    /// One mask for all blocks.
    pub(in crate::models) fn new(train: bool, mask: Mask) -> Self {
        Context { train, angles: Vec::new(), masks: vec![(None, mask)], across: Mask::Everything }
    }

    /// A mask per window, and angles per rope.
    pub(in crate::models) fn with_windows(
        train: bool,
        masks: Vec<(Option<i64>, Mask)>,
        angles: Vec<(Tensor, Tensor)>,
    ) -> Self {
        Context { train, angles, masks, across: Mask::Everything }
    }

    pub(in crate::models) fn mask(&self, window: Option<i64>) -> &Mask {
        let found = self.masks.iter().find(|(known, _)| *known == window);
        found.map_or(&Mask::Everything, |(_, mask)| mask)
    }
}
