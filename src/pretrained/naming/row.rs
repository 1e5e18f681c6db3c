//! The naming of a model type: which names its tensors have, with a head and without.

use super::head::Head;

/// The naming of some model types.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    /// Separated by spaces.
    pub(super) model_types: &'static str,
    /// The heads: the usual one first, and a head before those that have a part of its tensors.
    pub(super) heads: &'static [Top],
    /// Modules of other heads, beside the base model.
    pub(super) other_heads: &'static [&'static str],
    /// Modules of the base model that exist with these heads only.
    pub(super) kept_by: &'static [(&'static str, &'static [Head])],
    /// Endings of the names of buffers that the model computes, and of leftovers of former versions.
    pub(super) computed: &'static [&'static str],
    /// A copy and its original. Names of the base model have no prefix here.
    pub(super) ties: &'static [(&'static str, &'static str)],
    pub(super) tied: Tied,
    /// True for an encoder-decoder, whose `…ForCausalLM` is another class.
    pub(super) seq2seq: bool,
}

/// A model with one head.
#[derive(Debug, PartialEq)]
pub(super) struct Top {
    pub(super) head: Head,
    /// The prefix of the base model, or empty.
    pub(super) base: &'static str,
    /// Modules or tensors of the head.
    pub(super) modules: &'static [&'static str],
}

/// The condition under which copies are tied to their originals.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Tied {
    /// Always, whatever the configuration says.
    Always,
    /// If `tie_word_embeddings`, with its default.
    Default(bool),
    /// If `tie_word_embeddings` of the model, with its default; that of its language model says nothing.
    Own(bool),
    /// If `tie_word_embeddings` of the model, or of its language model with that one's default.
    ByEither,
}

impl Row {
    pub(super) fn top(&self, head: Head) -> Option<&'static Top> {
        self.heads.iter().find(|top| top.head == head)
    }

    /// True if a tensor is part of a head.
    pub(super) fn is_of_a_head(&self, name: &str) -> bool {
        let modules = self.heads.iter().flat_map(|top| top.modules).chain(self.other_heads);
        modules.into_iter().any(|module| is_part_of(name, module))
    }

    pub(super) fn is_computed(&self, name: &str) -> bool {
        self.computed.iter().any(|end| name.ends_with(end))
    }
}

/// True if a name is that of a module or tensor, or of one in it.
pub(crate) fn is_part_of(name: &str, module: &str) -> bool {
    name.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The part of `name` below a module.
pub(in crate::pretrained) fn below<'a>(name: &'a str, module: &str) -> Option<&'a str> {
    name.strip_prefix(module)?.strip_prefix('.')
}
