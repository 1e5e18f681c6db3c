//! How to attach, load and save where the defaults do not fit.

use crate::adapter::flat::Precision;
use crate::adapter::selection::Norms;

/// How an adapter is made. The default fits most models.
///
/// ```
/// use ln_tuning::{AdapterOptions, Norms};
/// let options = AdapterOptions::default().model_type("qwen3").norms(Norms::All);
/// ```
#[derive(Debug, Clone, Default)]
pub struct AdapterOptions {
    pub(crate) model_type: Option<String>,
    pub(crate) norms: Norms,
    pub(crate) precision: Precision,
}

impl AdapterOptions {
    /// The `model_type` of transformers, such as `llama`: it decides which modules are tuned where the configuration
    /// has no `target_modules`. Default: that of the directory that the variables are from. If it is not known, every
    /// norm is tuned that shows by name and shape.
    pub fn model_type(mut self, model_type: impl Into<String>) -> Self {
        self.model_type = Some(model_type.into());
        self
    }

    /// Which table says what the norms of a `model_type` are. Default: [`Norms::Peft`].
    pub fn norms(mut self, norms: Norms) -> Self {
        self.norms = norms;
        self
    }

    /// In which kind the tuned weights are stored and updated. Default: [`Precision::Master`].
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }
}

/// How an adapter is loaded. The default is strict, and for inference, as in PEFT.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    pub(crate) adapter: AdapterOptions,
    pub(crate) is_trainable: bool,
    pub(crate) allow_missing: bool,
    pub(crate) allow_unexpected: bool,
    pub(crate) ignore_mismatched_sizes: bool,
    pub(crate) key_mapping: Vec<(String, String)>,
}

impl LoadOptions {
    /// How the adapter is made.
    pub fn adapter(mut self, options: AdapterOptions) -> Self {
        self.adapter = options;
        self
    }

    /// Whether the adapter will be trained further. Default: no, for inference.
    pub fn is_trainable(mut self, is_trainable: bool) -> Self {
        self.is_trainable = is_trainable;
        self
    }

    /// Lets tensors that the file lacks keep the base's values, where the default is an error. They are reported.
    pub fn allow_missing(mut self, allow: bool) -> Self {
        self.allow_missing = allow;
        self
    }

    /// Lets tensors in the file that fit no selected module be left out, where the default is an error. They are
    /// reported.
    pub fn allow_unexpected(mut self, allow: bool) -> Self {
        self.allow_unexpected = allow;
        self
    }

    /// Lets tensors of another shape keep the base's values, where the default is an error. They are reported.
    pub fn ignore_mismatched_sizes(mut self, ignore: bool) -> Self {
        self.ignore_mismatched_sizes = ignore;
        self
    }

    /// Renames keys on loading: regular expressions with their replacements, in Python's syntax. The first that
    /// matches is applied, to the key without `base_model.model.`.
    pub fn key_mapping<P, R>(mut self, rules: impl IntoIterator<Item = (P, R)>) -> Self
    where
        P: Into<String>,
        R: Into<String>,
    {
        self.key_mapping = rules.into_iter().map(|(p, r)| (p.into(), r.into())).collect();
        self
    }
}

/// In which kind an adapter is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SaveKind {
    /// As it is trained: f32 unless the model is in f64 (or [`Precision::Model`] was chosen).
    #[default]
    Master,
    /// In the model's own kind, as PEFT writes it.
    Model,
}

/// How adapters are written.
#[derive(Debug, Clone, Default)]
pub struct SaveOptions {
    pub(crate) kind: SaveKind,
    pub(crate) selected_adapters: Option<Vec<String>>,
    pub(crate) key_mapping: Vec<(String, String)>,
}

impl SaveOptions {
    /// The kind of the tensors in the file. Default: [`SaveKind::Master`].
    pub fn kind(mut self, kind: SaveKind) -> Self {
        self.kind = kind;
        self
    }

    /// Writes only these adapters. Default: all.
    pub fn selected_adapters<S: Into<String>>(
        mut self,
        names: impl IntoIterator<Item = S>,
    ) -> Self {
        self.selected_adapters = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Renames keys on saving, where the variables are not named as the Python model's parameters: regular
    /// expressions with their replacements, in Python's syntax. The first that matches is applied to the module's
    /// path. `target_modules` is then written as the renamed paths.
    pub fn key_mapping<P, R>(mut self, rules: impl IntoIterator<Item = (P, R)>) -> Self
    where
        P: Into<String>,
        R: Into<String>,
    {
        self.key_mapping = rules.into_iter().map(|(p, r)| (p.into(), r.into())).collect();
        self
    }
}
