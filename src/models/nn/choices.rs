//! The parts of a batch, and the choice of each.

use std::borrow::Cow;

use tch::{Device, Tensor};

use crate::device::trace::sent_numbers;
use crate::error::{refuse, Result};

/// The choice of each part of a batch: the place of its adapter's name among those given.
#[derive(Debug)]
pub(super) struct Choices {
    /// The first dimensions of what goes through the model: `[rows]` or `[rows, places]`.
    pub(super) lead: Vec<i64>,
    /// Of each part, in order.
    pub(super) of_parts: Vec<usize>,
    /// The same on the device; `None` if part and choice have the same number.
    pub(super) index: Option<Tensor>,
}

impl Choices {
    /// Of `all` choices.
    pub(super) fn new(
        lead: Vec<i64>,
        choices: Vec<usize>,
        all: usize,
        device: Device,
    ) -> Result<Self> {
        let same = choices.len() == all
            && choices.iter().enumerate().all(|(part, choice)| part == *choice);
        let index: Vec<i64> = choices.iter().map(|choice| *choice as i64).collect();
        let index = if same { None } else { Some(sent_numbers(&index, device)?) };
        Ok(Choices { lead, of_parts: choices, index })
    }

    /// The choices of the parts of something of this size, and the shape of the parts. One after the other, several of
    /// its parts may belong to one part of the batch, or one to several.
    pub(super) fn of(&self, size: &[i64]) -> Result<(Cow<'_, [usize]>, Vec<i64>)> {
        if size.starts_with(&self.lead) {
            return Ok((Cow::Borrowed(&self.of_parts), self.lead.clone()));
        }
        let (parts, own) = (size.first().copied().unwrap_or(0), self.of_parts.len() as i64);
        let fits = self.lead.len() == 1 && parts > 0 && (own % parts == 0 || parts % own == 0);
        if !fits {
            refuse!(
                ShapeMismatch,
                "`adapter_names` are for {:?}, and a part of the model has {size:?}",
                self.lead
            );
        }
        let of = (0..parts).map(|part| self.of_parts[(part * own / parts) as usize]);
        Ok((Cow::Owned(of.collect()), vec![parts]))
    }
}
