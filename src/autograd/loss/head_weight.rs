//! The weight of a head: a tensor, or one in few bits, whose rows are computed a tile at a time.

use tch::{Kind, Tensor};

use crate::error::{refuse, Result};
use crate::quantised::Quantised;

/// `[vocabulary, hidden size]`.
#[derive(Debug)]
pub(crate) enum HeadWeight {
    Plain(Tensor),
    /// Frozen, with the kind of its values.
    // Only models keep weights so.
    #[cfg_attr(not(feature = "models"), allow(dead_code))]
    Quantised(Quantised, Kind),
}

impl HeadWeight {
    pub(super) fn size(&self) -> Vec<i64> {
        match self {
            HeadWeight::Plain(tensor) => tensor.size(),
            HeadWeight::Quantised(quantised, _) => quantised.shape().to_vec(),
        }
    }

    pub(super) fn size2(&self) -> Result<(i64, i64)> {
        match self.size()[..] {
            [vocab, size] => Ok((vocab, size)),
            _ => refuse!(ShapeMismatch, "a head of shape {:?} is no matrix", self.size()),
        }
    }

    pub(super) fn kind(&self) -> Result<Kind> {
        match self {
            HeadWeight::Plain(tensor) => Ok(tensor.f_kind()?),
            HeadWeight::Quantised(_, kind) => Ok(*kind),
        }
    }

    /// The tensor, which may train.
    pub(super) fn plain(&self) -> Option<&Tensor> {
        match self {
            HeadWeight::Plain(tensor) => Some(tensor),
            HeadWeight::Quantised(..) => None,
        }
    }

    /// The rows from `start` on, written to `out` in its kind.
    pub(super) fn rows_into(&self, start: i64, out: &mut Tensor) -> Result<()> {
        match self {
            HeadWeight::Plain(tensor) => {
                out.f_copy_(&tensor.f_narrow(0, start, out.size2()?.0)?)?;
                Ok(())
            }
            HeadWeight::Quantised(quantised, _) => quantised.rows_into(start, out),
        }
    }

    /// Without a graph.
    pub(super) fn detached(&self) -> Result<Self> {
        Ok(match self {
            HeadWeight::Plain(tensor) => HeadWeight::Plain(tensor.f_detach()?),
            HeadWeight::Quantised(quantised, kind) => {
                HeadWeight::Quantised(quantised.shallow_clone(), *kind)
            }
        })
    }
}
