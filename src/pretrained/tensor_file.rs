//! The place of a tensor in a model's files.

use tch::{Kind, Tensor};

use super::gguf::conversion::Conversion;
use crate::error::Result;
#[cfg(feature = "models")]
use crate::quantised::BlockType;
use crate::quantised::Quantised;
use crate::storage::info::is_float;
use crate::storage::safetensors::kind_of;
use crate::storage::stored::{Stored, StoredTensors};

/// The place of a tensor.
#[derive(Debug, Clone)]
pub(crate) struct TensorFile {
    pub(crate) name: String,
    pub(crate) shard: usize,
    pub(crate) stored: Stored,
    /// The way from there to memory.
    pub(crate) conversion: Conversion,
    /// The kind of all floating-point numbers of a GGUF file, where no other is asked for.
    pub(crate) own_kind: Option<Kind>,
}

impl TensorFile {
    /// The kind in memory where no other is asked for; `None` for one that libtorch lacks.
    pub(crate) fn kind(&self) -> Option<Kind> {
        let stored = kind_of(self.stored.dtype);
        self.own_kind.filter(|_| stored.is_none_or(is_float)).or(stored)
    }

    /// True if its bytes are numbers of this kind, as they are in memory.
    pub(crate) fn is_in(&self, kind: Kind) -> bool {
        kind_of(self.stored.dtype) == Some(kind) && self.conversion == Conversion::AsStored
    }

    /// The shape in memory.
    pub(crate) fn shape(&self) -> Vec<i64> {
        self.conversion.shape(&self.stored.shape)
    }

    /// The tensor in memory, from the file or a map of it.
    pub(crate) fn read(&self, file: &StoredTensors, map: Option<&Tensor>) -> Result<Tensor> {
        let stored = match map {
            Some(map) => file.view(map, &self.stored)?,
            None => file.read(&self.stored)?,
        };
        self.conversion.applied(&self.place_in(file), stored)
    }

    fn place_in(&self, file: &StoredTensors) -> String {
        format!("'{}' in '{}'", self.stored.key, file.path.display())
    }

    /// The type of its blocks; `None` as for [`quantised`](Self::quantised).
    #[cfg(feature = "models")]
    pub(crate) fn block_type(&self, file: &StoredTensors, turned: bool) -> Option<BlockType> {
        file.block_type(&self.stored).filter(|_| self.keeps_blocks(turned))
    }

    /// True if rows of blocks stay rows in memory.
    fn keeps_blocks(&self, turned: bool) -> bool {
        self.conversion.keeps_rows() && !turned
            || self.conversion == Conversion::Transposed && turned
    }

    /// The blocks in memory; `None` if it is not quantised, or not in rows of blocks. `turned`: those of a matrix that
    /// is transposed in memory, as the file has it.
    pub(crate) fn quantised(
        &self,
        file: &StoredTensors,
        turned: bool,
    ) -> Result<Option<Quantised>> {
        let Some((blocks, rows)) = self.stored_blocks(file, turned)? else { return Ok(None) };
        let Some(rows) = rows else { return Ok(Some(blocks)) };
        Ok(Some(blocks.of_rows(&Tensor::f_from_slice(&rows)?)?))
    }

    /// [`quantised`](Self::quantised) as the file has them; and per row in memory, the row of the file, if they are not
    /// the same.
    pub(crate) fn stored_blocks(
        &self,
        file: &StoredTensors,
        turned: bool,
    ) -> Result<Option<(Quantised, Option<Vec<i64>>)>> {
        if !self.keeps_blocks(turned) {
            return Ok(None);
        }
        let Some(blocks) = file.quantised(&self.stored)? else { return Ok(None) };
        let rows = self.conversion.rows(&self.place_in(file), blocks.shape())?;
        Ok(Some((blocks, rows)))
    }
}

pub(crate) fn is_parameter(name: &str, kind: Kind) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    is_float(kind) && !["running_mean", "running_var", "final_logits_bias"].contains(&last)
}
