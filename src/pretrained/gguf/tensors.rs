//! The tensors of a GGUF file that say something about the configuration.

use tch::Tensor;

use crate::error::{refusal, refuse, Result};
use crate::storage::gguf::GgufFile;

/// The tensors by their names in the file.
pub(super) struct Tensors<'f> {
    file: &'f GgufFile,
}

impl<'f> Tensors<'f> {
    pub(super) fn of(file: &'f GgufFile) -> Self {
        Tensors { file }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.file.find(name).is_some()
    }

    /// True if the first block has it.
    pub(super) fn first_has(&self, name: &str) -> bool {
        self.has(&format!("blk.0.{name}"))
    }

    pub(super) fn count(&self) -> usize {
        self.file.tensors().len()
    }

    /// The number of tokens: the rows of the embedding.
    pub(super) fn vocabulary(&self) -> Result<i64> {
        let found = self.file.find("token_embd.weight").and_then(|tensor| tensor.shape.first());
        found.copied().ok_or_else(|| {
            refusal!(
                MissingKeys,
                "'{}' lacks the tensor 'token_embd.weight': is it a language model?",
                self.file.path().display()
            )
        })
    }

    /// True if there is no head, or one that is the embedding byte for byte.
    pub(super) fn is_tied(&self) -> Result<bool> {
        let pair = (self.file.find("output.weight"), self.file.find("token_embd.weight"));
        let (Some(head), Some(embedding)) = pair else { return Ok(pair.0.is_none()) };
        let same = (head.block_type, &head.shape) == (embedding.block_type, &embedding.shape);
        Ok(same && self.file.bytes(head)? == self.file.bytes(embedding)?)
    }

    /// Factors of a rope's frequencies, above 0; `None` if there is no such tensor.
    pub(super) fn factors(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.file.find(name) else { return Ok(None) };
        let values = self.file.tensor(tensor)?.f_view([-1])?.f_to_kind(tch::Kind::Float)?;
        let factors: Vec<f32> = Vec::try_from(&values as &Tensor)?;
        if !factors.iter().all(|factor| *factor > 0. && factor.is_finite()) {
            refuse!(
                InvalidConfig,
                "'{name}' in '{}' is {factors:?}, expected numbers above 0",
                self.file.path().display()
            );
        }
        Ok(Some(factors))
    }
}
