//! Tensors of the base that a saved adapter brings along: PEFT adds the embeddings if the vocabulary was resized.

use std::collections::{BTreeSet, HashSet};

use tch::Tensor;

use super::keys::{carried, KeyMapping};
use crate::adapter::attachment::Attachment;
use crate::adapter::selection::Selection;
use crate::error::Result;

/// The tensors of a saved adapter, some of which may be the base's.
pub(crate) struct Carried {
    /// Those to load.
    pub(crate) tensors: Vec<(String, Tensor)>,
    /// Keys of tensors that are the base's own, unchanged.
    pub(crate) of_the_base: Vec<String>,
    mapping: KeyMapping,
}

impl Carried {
    pub(crate) fn among(
        tensors: Vec<(String, Tensor)>,
        mapping: &[(String, String)],
    ) -> Result<Self> {
        Ok(Carried { tensors, of_the_base: Vec::new(), mapping: KeyMapping::new(mapping)? })
    }

    /// Sets aside what is the base's own, and adds what is not to the selection: PEFT puts it into the base, where it
    /// would stay for other adapters.
    pub(crate) fn settle(
        &mut self,
        attachment: &Attachment,
        selection: Selection,
    ) -> Result<Selection> {
        let selected: HashSet<&str> = selection.variables().collect();
        let mut names = BTreeSet::new();
        let mut kept = Vec::with_capacity(self.tensors.len());
        for (key, tensor) in std::mem::take(&mut self.tensors) {
            let name =
                carried(&key, &self.mapping)?.filter(|name| !selected.contains(name.as_str()));
            let place = name.and_then(|name| Some((attachment.variables.position(&name)?, name)));
            if let Some((index, name)) = place {
                let base = attachment.base_data(index)?;
                let own = tensor.f_to_device(base.device())?.f_to_kind(base.f_kind()?)?;
                if own.size() == base.size() && own.f_equal(&base)? {
                    self.of_the_base.push(key);
                    continue;
                }
                names.insert(name);
            }
            kept.push((key, tensor));
        }
        self.tensors = kept;
        Ok(if names.is_empty() { selection } else { selection.with_carried(names) })
    }
}
