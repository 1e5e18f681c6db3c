//! A table whose rows are added to hidden states, such as that of positions.

use tch::nn::Init;
use tch::Tensor;

use super::rows::Rows;
use super::weights::Weights;
use crate::error::Result;
use crate::kernels::number;

/// `[count, size]`, of which adapters may have their own.
#[derive(Debug)]
pub(in crate::models) struct Table(Tensor);

impl Table {
    pub(in crate::models) fn build(
        weights: &Weights,
        name: &str,
        shape: [i64; 2],
        init: Init,
    ) -> Result<Self> {
        Ok(Table(weights.by_row(name, &shape, init)?))
    }

    /// The number of its rows.
    pub(in crate::models) fn count(&self) -> i64 {
        self.0.size().first().copied().unwrap_or(0)
    }

    /// The rows of these numbers, `[length]` or `[batch or 1, length]`, for so many rows of a batch: `[…, size]`. The row
    /// `padding` gets no gradient.
    pub(in crate::models) fn lookup(
        &self,
        numbers: &Tensor,
        batch: i64,
        padding: i64,
    ) -> Result<Tensor> {
        let found = |table: &Tensor, numbers: &Tensor| {
            Ok(Tensor::f_embedding(table, numbers, padding, false, false)?)
        };
        let Some(rows) = Rows::with_own([Some(&self.0)]) else { return found(&self.0, numbers) };
        let length = numbers.size().last().copied().unwrap_or(0);
        let numbers = numbers.f_expand([batch, length], false)?;
        rows.grouped(&numbers, [Some(&self.0)], |numbers, adapter| {
            found(&rows.of(&self.0, adapter)?, numbers)
        })
    }

    /// `length` rows from `start` on, `[length, size]`; `[batch, length, size]` where rows of the batch have their own.
    pub(in crate::models) fn part(&self, start: i64, length: i64, batch: i64) -> Result<Tensor> {
        if Rows::with_own([Some(&self.0)]).is_none() {
            return Ok(self.0.f_narrow(0, start, length)?);
        }
        let numbers = number::arange(start, start + length, self.0.device())?;
        self.lookup(&numbers, batch, -1)
    }

    /// The table of the adapter of each part of `x`, as `f` makes it: `[parts…, …]`. Where all have the same, that of all.
    pub(in crate::models) fn of_each(
        &self,
        x: &Tensor,
        f: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match Rows::with_own([Some(&self.0)]) {
            Some(rows) => rows.of_each(x, |adapter| f(&rows.of(&self.0, adapter)?)),
            None => f(&self.0),
        }
    }
}
