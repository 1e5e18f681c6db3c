//! The options of attaching, loading and saving.

use crate::adapter::flat::Precision;
use crate::adapter::selection::{Layers, Norms};

/// The options of a new adapter. The default fits most models.
///
/// ```
/// use ln_tuning::{AdapterOptions, Norms};
/// let options = AdapterOptions::default().model_type("qwen3").norms(Norms::All);
/// ```
#[derive(Debug, Clone, Default)]
pub struct AdapterOptions {
    pub(crate) model_type: Option<String>,
    pub(crate) norms: Norms,
    pub(crate) layers: Option<Layers>,
    pub(crate) precision: Precision,
}

impl AdapterOptions {
    /// The `model_type` of transformers, such as `llama`: the modules follow from it if the configuration has no
    /// `target_modules`. Default: that of the directory from which the variables were loaded. If it is not known, every
    /// norm is tuned that is recognised by name and shape.
    pub fn model_type(mut self, model_type: impl Into<String>) -> Self {
        self.model_type = Some(model_type.into());
        self
    }

    /// The table of the norms of each `model_type`. Default: [`Norms::Peft`].
    pub fn norms(mut self, norms: Norms) -> Self {
        self.norms = norms;
        self
    }

    /// Tunes the norms of these layers only, whatever selects them
    /// ([`Selection::in_layers`](crate::Selection::in_layers)). Default: all, and those outside of layers.
    #[doc(alias = "layers_to_transform")]
    pub fn layers(mut self, layers: impl Into<Option<Layers>>) -> Self {
        self.layers = layers.into();
        self
    }

    /// The kind in which tuned weights are stored and updated. Default: [`Precision::Master`].
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }
}

/// The options of loading an adapter. The default is strict, and for inference, as in PEFT.
///
/// ```no_run
/// use ln_tuning::{LnTuningModel, LoadOptions};
/// # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
/// // To train it further; it was saved from a model that torch.compile had wrapped.
/// let options = LoadOptions::default().is_trainable(true).key_mapping([(r"^_orig_mod\.", "")]);
/// let (tuned, report) = LnTuningModel::from_pretrained_with(&vs, "my-adapter", "mine", &options)?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
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
    /// The options of the new adapter.
    pub fn adapter(mut self, options: AdapterOptions) -> Self {
        self.adapter = options;
        self
    }

    /// Makes the adapter trainable. Default: false, for inference.
    pub fn is_trainable(mut self, is_trainable: bool) -> Self {
        self.is_trainable = is_trainable;
        self
    }

    /// Keeps the base's values for tensors that the file lacks, and reports them. Default: an error.
    pub fn allow_missing(mut self, allow: bool) -> Self {
        self.allow_missing = allow;
        self
    }

    /// Leaves out tensors of the file that belong to no selected module, and reports them. Default: an error.
    pub fn allow_unexpected(mut self, allow: bool) -> Self {
        self.allow_unexpected = allow;
        self
    }

    /// Keeps the base's values for tensors of another shape, and reports them. Default: an error.
    pub fn ignore_mismatched_sizes(mut self, ignore: bool) -> Self {
        self.ignore_mismatched_sizes = ignore;
        self
    }

    /// Renames keys on loading: regular expressions with their replacements, as for Python's `re.subn`. The first rule
    /// that matches is applied wherever it does, to the key without `base_model.model.`, before keys are compared with
    /// those of any layout.
    pub fn key_mapping(
        mut self,
        rules: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Self {
        self.key_mapping = rules.into_iter().map(|(p, r)| (p.into(), r.into())).collect();
        self
    }
}

/// The kind in which an adapter is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SaveKind {
    /// The kind in which it is trained: f32, unless the model is in f64 or [`Precision::Model`] was chosen.
    #[default]
    Master,
    /// The model's own kind, as PEFT writes it.
    Model,
}

/// The options of saving adapters.
///
/// ```no_run
/// use ln_tuning::{LnTuningConfig, LnTuningModel, SaveKind, SaveOptions};
/// # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
/// let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
/// let options = SaveOptions::default().kind(SaveKind::Model).selected_adapters(["default"]);
/// tuned.save_pretrained_with("my-adapter", &options)?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SaveOptions {
    pub(crate) kind: SaveKind,
    pub(crate) scale: f64,
    pub(crate) selected_adapters: Option<Vec<String>>,
    /// The adapter that the directory itself gets; `None`: that of the usual name.
    pub(crate) at_root: Option<String>,
    pub(crate) key_mapping: Vec<(String, String)>,
}

impl Default for SaveOptions {
    fn default() -> Self {
        let (kind, selected_adapters, at_root, key_mapping) = Default::default();
        SaveOptions { kind, scale: 1., selected_adapters, at_root, key_mapping }
    }
}

impl SaveOptions {
    /// Writes base + `scale` · (tuned − base), rounded once (arXiv 2508.07577): for 0 the base, for 1, the default, the
    /// adapter. Modules in `modules_to_save` are scaled from the values that they had when the adapter was attached.
    /// The adapter in memory stays as it is.
    pub fn scale(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

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
        self.at_root = None;
        self
    }

    /// Writes this adapter alone, to the directory itself whatever its name.
    pub fn only(mut self, name: impl Into<String>) -> Self {
        let name = name.into();
        self.selected_adapters = Some(vec![name.clone()]);
        self.at_root = Some(name);
        self
    }

    /// Renames keys on saving, if the variables have other names than the Python model's parameters: regular
    /// expressions with their replacements, as for Python's `re.subn`. The first rule that matches is applied wherever
    /// it does, to the module's path. `target_modules` is then written as the renamed paths.
    pub fn key_mapping(
        mut self,
        rules: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Self {
        self.key_mapping = rules.into_iter().map(|(p, r)| (p.into(), r.into())).collect();
        self
    }
}

/// The options of [`merge_with`](crate::merge_with).
#[derive(Debug, Clone)]
pub struct MergeOptions {
    pub(crate) scale: f64,
    pub(crate) key_mapping: Vec<(String, String)>,
}

impl Default for MergeOptions {
    fn default() -> Self {
        MergeOptions { scale: 1., key_mapping: Vec::new() }
    }
}

impl MergeOptions {
    /// Merges base + `scale` · (tuned − base), rounded once (arXiv 2508.07577): for 0 the base, for 1, the default, the
    /// adapter. Tensors that the base lacks, such as those of a new head, are merged whole, and reported.
    pub fn scale(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

    /// Renames the adapter's keys first, as [`LoadOptions::key_mapping`] does.
    pub fn key_mapping(
        mut self,
        rules: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Self {
        self.key_mapping = rules.into_iter().map(|(p, r)| (p.into(), r.into())).collect();
        self
    }
}
