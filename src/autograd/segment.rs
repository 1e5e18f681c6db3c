//! Pieces of a graph: those of the blocks behind which a tape cuts it.

use tch::Tensor;

use super::scratch::Recorded;
use crate::error::Result;

/// A block, which computes the same each time.
pub(super) type Block<'a> = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'a>;

/// A block behind which the graph is cut.
pub(super) struct Segment<'a> {
    pub(super) way: Way<'a>,
    /// Leaves, at which the graph of the following operations starts; `None` for outputs without a gradient.
    pub(super) outputs: Vec<Option<Tensor>>,
}

/// The way to a block's graph in the backward pass.
pub(super) enum Way<'a> {
    /// The block, which was run without a graph, runs again.
    Again {
        block: Block<'a>,
        /// With their graphs.
        inputs: Vec<Tensor>,
        seed: Option<i64>,
    },
    /// The results have their graph, which reads values that are computed again.
    Kept { results: Vec<Tensor>, values: Recorded },
}

impl Way<'_> {
    pub(super) fn has_seed(&self) -> bool {
        matches!(self, Way::Again { seed: Some(_), .. })
    }

    /// The results with their graph, and the values that it reads.
    pub(super) fn go(self) -> Result<(Vec<Tensor>, Recorded)> {
        match self {
            Way::Again { block, inputs, seed } => {
                if let Some(seed) = seed {
                    tch::manual_seed(seed);
                }
                Recorded::of(|| block(&inputs))
            }
            Way::Kept { results, values } => {
                values.compute()?;
                Ok((results, values))
            }
        }
    }
}

/// The start of a new graph, with the same values.
pub(super) fn leaf(result: &Tensor) -> Result<Tensor> {
    Ok(result.f_detach()?.f_set_requires_grad(true)?)
}

/// The results as the following operations get them.
pub(super) fn given(results: &[Tensor], leaves: &[Option<Tensor>]) -> Vec<Tensor> {
    let pairs = results.iter().zip(leaves);
    pairs.map(|(result, leaf)| leaf.as_ref().unwrap_or(result).shallow_clone()).collect()
}
