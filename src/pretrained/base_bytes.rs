//! The memory that a base takes.

use tch::nn::VarStore;
#[cfg(feature = "models")]
use tch::Device;
use tch::Kind;

#[cfg(feature = "models")]
use super::files::ModelFiles;
#[cfg(feature = "models")]
use super::kept::Keeping;
use crate::error::Result;
#[cfg(feature = "models")]
use crate::storage::info::is_float;

/// The memory of a model's tensors, and of those among them that are kept in few bits.
///
/// Of a map of the file, as [`Place::Mapped`](super::Place::Mapped) and [`Place::Streamed`](super::Place::Streamed)
/// have it, these are bytes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BaseBytes {
    /// The bytes of all tensors.
    pub all: u64,
    /// The number of matrices in few bits.
    pub matrices: u64,
    /// Their bytes.
    pub in_few_bits: u64,
}

impl BaseBytes {
    /// Those of a model that is loaded.
    ///
    /// # Errors
    /// `Torch` for a tensor without a kind, which no model has.
    pub fn of(vs: &VarStore) -> Result<Self> {
        let mut bytes = BaseBytes::default();
        for tensor in vs.variables().values() {
            let kind = tensor.f_kind()?;
            bytes.add(tensor.numel() as u64 * kind.elt_size_in_bytes() as u64, kind == Kind::Uint8);
        }
        Ok(bytes)
    }

    fn add(&mut self, bytes: u64, in_few_bits: bool) {
        self.all += bytes;
        if in_few_bits {
            self.matrices += 1;
            self.in_few_bits += bytes;
        }
    }
}

#[cfg(feature = "models")]
impl ModelFiles {
    /// Those of the tensors that `wanted` accepts, once they are loaded; none is read.
    pub(crate) fn base_bytes(
        &self,
        kind: Option<Kind>,
        wanted: impl Fn(&str) -> bool,
        keeping: &Keeping,
    ) -> Result<BaseBytes> {
        self.check_form(keeping.frozen, Device::Cpu)?;
        let mut bytes = BaseBytes::default();
        for file in self.tensors().iter().filter(|file| wanted(&file.name)) {
            let (shape, encoding) = keeping.encoding(self, file);
            if let Some(quantised) = encoding.and_then(|encoding| encoding.bytes(&shape)) {
                bytes.add(quantised as u64, true);
                continue;
            }
            let own = file.kind().unwrap_or(Kind::Float);
            let asked = kind.filter(|_| is_float(own) && !keeping.is_streamed(&file.name));
            let size = asked.unwrap_or(own).elt_size_in_bytes() as i64;
            let own = (size * shape.iter().product::<i64>()) as u64;
            // Two orders of its own, while a model trains.
            let times = if keeping.is_packed(&file.name) { 3 } else { 1 };
            bytes.add(times * own, false);
        }
        Ok(bytes)
    }
}
