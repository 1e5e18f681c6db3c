//! The setting of block checkpointing, and the blocks that are run twice by it.

use anyhow::{bail, Result};
use ln_tuning::pretrained::Frozen;
use ln_tuning::recompute::{Blocks, Recompute};
use serde::Deserialize;

/// `none`, `all`, or n: every n-th block.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Checkpointing {
    Every(usize),
    Named(String),
}

impl Checkpointing {
    /// True for `none`.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::Named(name) if name == "none")
    }

    /// The blocks that are run twice, if any: all of them beside a base that is streamed, whose weights are elsewhere
    /// by the time of the backward pass. Beside one in few bits, there is a tape without such blocks too: it computes the
    /// values again that a graph would keep.
    pub fn recompute(&self, base: Frozen) -> Result<Option<Recompute>> {
        let blocks = match self {
            Self::Every(n) if *n > 1 && base.is_streamed() => bail!(
                "'checkpointing' is {n} and 'base' {base}: a base that is streamed needs all blocks checkpointed. Set \
                 'checkpointing' to all"
            ),
            Self::Every(n) if *n > 0 => Blocks::EveryNth(*n),
            Self::Named(name) if name == "all" => Blocks::All,
            none if none.is_none() && base.is_streamed() => Blocks::All,
            none if none.is_none() && base.is_quantised() => Blocks::First(0),
            none if none.is_none() => return Ok(None),
            other => bail!("'checkpointing' is {other:?}, expected none, all or a number above 0"),
        };
        Ok(Some(Recompute::new(blocks)))
    }
}
