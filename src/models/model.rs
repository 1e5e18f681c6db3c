//! A model: how it is built, loaded and run.

use std::collections::HashMap;
use std::path::Path as FilePath;

use serde_json::Value;
use tch::nn::{Path, VarStore};
use tch::{Device, Kind, Tensor};

use super::config::ModelConfig;
use super::inputs::Inputs;
use super::nn::{is_below, Weights};
use crate::autograd::recompute::Tape;
use crate::error::{refuse, Result};
use crate::names::nearest::listed;
use crate::names::wrappers::wrapper_of_all;
use crate::pretrained::kept::{Keeping, Use};
use crate::pretrained::{origin, with_class_of, BaseBytes, Frozen, Head, ModelFiles};

/// A model under the variable names that transformers has in memory.
///
/// ```no_run
/// use ln_tuning::models::{Encoder, Head, Load, Model};
/// use ln_tuning::pretrained::ModelFiles;
/// let device = ln_tuning::device::best_device();
/// let (vs, model) = Encoder::from_pretrained("all-MiniLM-L6-v2", device, None)?;
///
/// let load = Load::on(device).head(Head::TokenClassification).labels(["name", "place", "other"]);
/// let files = ModelFiles::open("bert-base-uncased")?.with_progress(|done, total| println!("{done}/{total}"));
/// let (vs, model) = Encoder::from_files(files, &load)?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[doc(alias = "PreTrainedModel")]
pub trait Model: Sized {
    /// Its configuration.
    type Config: ModelConfig;

    /// Makes the model of the variables below a path, adding those that are not there.
    ///
    /// # Errors
    /// `ShapeMismatch` where a variable that is there has another shape; `Torch`.
    fn build(weights: &Weights, config: &Self::Config) -> Result<Self>;

    /// Its configuration.
    fn config(&self) -> &Self::Config;

    /// The kind of the weights, which images must have too.
    fn kind(&self) -> Kind;

    /// The hidden states `[batch, length, size]` below the head, with block checkpointing: the blocks are run through
    /// the tape of [`Recompute::gradients`](crate::recompute::Recompute::gradients).
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states).
    fn hidden_states_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor>;

    /// The head's logits, with block checkpointing.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    fn logits_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor>;

    /// The hidden states `[batch, length, size]` below the head.
    ///
    /// # Errors
    /// `ShapeMismatch` for inputs of other shapes; `InvalidArgument` for inputs that are missing or that the model has
    /// no use for, and for more places than it has positions; `Torch` for ids outside the vocabulary, or another kind
    /// or device than the model's.
    #[doc(alias = "last_hidden_state")]
    fn hidden_states<'a>(&self, inputs: impl Into<Inputs<'a>>) -> Result<Tensor> {
        self.hidden_states_with(inputs.into(), &mut Tape::off())
    }

    /// The head's logits: `[batch, length, vocabulary]` of a language model, `[batch, labels]` of a classifier,
    /// `[batch, length, labels]` of a classifier of tokens.
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states); `InvalidState` for a model without a head.
    fn logits<'a>(&self, inputs: impl Into<Inputs<'a>>) -> Result<Tensor> {
        self.logits_with(inputs.into(), &mut Tape::off())
    }

    /// Settles what depends on how the files were loaded.
    #[doc(hidden)]
    fn loaded(_config: &Self::Config, _vs: &VarStore, _files: &ModelFiles) -> Result<()> {
        Ok(())
    }

    /// Makes the model from the variables below `path`, adding those that are not there.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    fn new(path: &Path, config: &Self::Config) -> Result<Self> {
        Self::build(&Weights::new(path), config)
    }

    /// The `model_type`, such as `llama`.
    fn model_type(&self) -> &str {
        self.config().model_type()
    }

    /// Opens a model directory of transformers, or a GGUF file of llama.cpp (`"model.gguf"`), and fills a `VarStore`
    /// with its weights, on `device` and in `kind` (`None`: each as on disk; those of a GGUF file in f32 if it has
    /// weights in blocks). The head is the one of `architectures`.
    ///
    /// # Errors
    /// Those of [`ModelFiles::open`] and [`ModelConfig::from_value`]; `MissingKeys`, `UnexpectedKeys`, `ShapeMismatch`
    /// where the tensors are not those of the model.
    fn from_pretrained(
        dir: impl AsRef<FilePath>,
        device: Device,
        kind: impl Into<Option<Kind>>,
    ) -> Result<(VarStore, Self)> {
        Self::from_pretrained_with(dir, &Load::on(device).kind(kind))
    }

    /// [`from_pretrained`](Self::from_pretrained) with a head or labels of your choice.
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    fn from_pretrained_with(dir: impl AsRef<FilePath>, load: &Load) -> Result<(VarStore, Self)> {
        Self::from_files(ModelFiles::open(dir)?, load)
    }

    /// [`from_pretrained_with`](Self::from_pretrained_with) from files that are open already, for
    /// [`with_progress`](ModelFiles::with_progress).
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    fn from_files(files: ModelFiles, load: &Load) -> Result<(VarStore, Self)> {
        let Opened { config, files, fresh, keeping } = Opened::<Self>::of(files, load)?;
        let (is_fresh, wanted) = chosen(&files, &fresh);
        let vs = files.var_store_keeping(load.device, load.kind, wanted, &keeping)?;
        let mut kinds = vs.trainable_variables().into_iter().map(|tensor| tensor.kind());
        let kind = kinds.next().unwrap_or(Kind::Float);
        let weights = {
            let (copies, kept) = (origin::copies(&vs), origin::kept(&vs));
            Weights::filled(&vs.root(), kind, copies, kept, fresh.clone())
        };
        let model = Self::build(&weights, &config)?;
        origin::keep_copies(&vs, &weights.handed_out().0);
        check_all_used(&vs, &weights, &files, is_fresh)?;
        Self::loaded(&config, &vs, &files)?;
        drop(weights);
        Ok((vs, model))
    }

    /// The memory that the tensors of [`from_files`](Self::from_files) take; no tensor is read.
    ///
    /// # Errors
    /// As [`from_files`](Self::from_files), for a configuration or a way of keeping matrices that is refused.
    fn base_bytes(files: ModelFiles, load: &Load) -> Result<BaseBytes> {
        let Opened { files, fresh, keeping, .. } = Opened::<Self>::of(files, load)?;
        let (_, wanted) = chosen(&files, &fresh);
        files.base_bytes(load.kind, wanted, &keeping)
    }
}

/// The files of a model with the head that is asked for, before a tensor is read.
struct Opened<M: Model> {
    config: M::Config,
    files: ModelFiles,
    /// Modules that are made anew.
    fresh: Vec<String>,
    keeping: Keeping,
}

impl<M: Model> Opened<M> {
    fn of(mut files: ModelFiles, load: &Load) -> Result<Self> {
        check_unwrapped(&files)?;
        if let Some((module, config)) = M::Config::part_of(files.config())? {
            files = files.part(module, config)?;
        }
        let mut config = match load.chosen_head::<M::Config>() {
            Some(head) => M::Config::from_value(&with_class_of(files.config(), head))?,
            None => M::Config::from_value(files.config())?,
        };
        if load.head.is_none() && files.config().get("architectures").is_none_or(Value::is_null) {
            // The tensors tell, if they tell something that the model knows.
            config = config.clone().with_head(files.head()).unwrap_or(config);
        }
        let mut fresh = Vec::new();
        if let Some(labels) = &load.labels {
            config = config.with_labels(labels.iter().cloned())?;
            fresh = config.label_modules();
        }
        if let Some(generation) = files.generation_config()? {
            config = config.with_generation(&generation)?;
        }
        let files = files.with_head(config.head())?;
        let mut keeping = Keeping { frozen: load.frozen, ..Keeping::default() };
        if Keeping::needs_matrices(load.frozen) {
            keeping.matrices = matrices::<M>(&config)?;
            // Classifiers are small, and train.
            let trains = config.head().has_labels();
            keeping.matrices.retain(|name, _| !(trains && files.layout().is_of_a_head(name)));
        }
        Ok(Opened { config, files, fresh, keeping })
    }
}

/// Two questions about a name: is it of a module that is made anew, and is it of a tensor that the model takes from the
/// files? A head for labels of your own takes the place of the checkpoint's; what of it belongs to the base stays.
fn chosen<'f>(
    files: &'f ModelFiles,
    fresh: &'f [String],
) -> (impl Fn(&str) -> bool + 'f, impl Fn(&str) -> bool + 'f) {
    let is_fresh = move |name: &str| is_below(name, fresh);
    (is_fresh, move |name: &str| !(is_fresh(name) && files.layout().is_of_a_head(name)))
}

/// Options of loading a model: the device, the kind, the head.
///
/// ```
/// use ln_tuning::models::Load;
/// let load = Load::on(tch::Device::Cpu).kind(tch::Kind::BFloat16).labels(["ham", "spam"]);
/// ```
#[derive(Debug, Clone)]
pub struct Load {
    device: Device,
    kind: Option<Kind>,
    head: Option<Head>,
    labels: Option<Vec<String>>,
    frozen: Frozen,
}

impl Load {
    /// To this device, each tensor in the kind that it has on disk, with the head of `architectures`.
    pub fn on(device: Device) -> Self {
        Load { device, kind: None, head: None, labels: None, frozen: Frozen::default() }
    }

    /// In this kind. Default: each as on disk; see [`ModelFiles::variables`] for GGUF.
    pub fn kind(mut self, kind: impl Into<Option<Kind>>) -> Self {
        self.kind = kind.into();
        self
    }

    /// With the matrices kept in this way, so that adapters train beside them. Default: as numbers in memory, or a map
    /// of the file.
    ///
    /// ```no_run
    /// use ln_tuning::models::{Decoder, Form, Frozen, Load, Model};
    /// let load = Load::on(tch::Device::Cpu).frozen(Frozen::default().form(Form::Nf4));
    /// let (vs, model) = Decoder::from_pretrained_with("Llama-3.2-1B", &load)?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn frozen(mut self, frozen: Frozen) -> Self {
        self.frozen = frozen;
        self
    }

    /// With this head, whatever `architectures` says. Weights of other heads are left out, and the base model's prefix
    /// is added or removed, as transformers does; the weights of this head must be there.
    pub fn head(mut self, head: Head) -> Self {
        self.head = Some(head);
        self
    }

    /// The head that is asked for.
    fn chosen_head<C: ModelConfig>(&self) -> Option<Head> {
        self.head.or(self.labels.as_ref().map(|_| C::CLASSIFIER))
    }

    /// The head that is asked for, else that of the files.
    pub(super) fn head_of<C: ModelConfig>(&self, files: &ModelFiles) -> Head {
        self.chosen_head::<C>().unwrap_or(files.head())
    }

    /// With a classifier for labels of your own, whose weights are initialised anew (after `tch::manual_seed`, the same
    /// each time); one that the checkpoint holds is left out, and it may be one of a base model. Default head: the
    /// classifier of whole sequences or images.
    pub fn labels<L: Into<String>>(mut self, labels: impl IntoIterator<Item = L>) -> Self {
        self.labels = Some(labels.into_iter().map(Into::into).collect());
        self
    }
}

/// The matrices of such a model, which is built without a variable for it.
fn matrices<M: Model>(config: &M::Config) -> Result<HashMap<String, Use>> {
    let none = VarStore::new(Device::Cpu);
    let weights = Weights::only_names(&none.root());
    M::build(&weights, config)?;
    Ok(weights.matrices())
}

/// Refuses files that were saved from a wrapped model, all of whose tensors have other names.
fn check_unwrapped(files: &ModelFiles) -> Result<()> {
    let variables = files.variables();
    let names: Vec<&str> = variables.iter().map(|variable| variable.name.as_str()).collect();
    if let Some(wrapper) = wrapper_of_all(&names) {
        refuse!(
            UnexpectedKeys,
            "all tensors of '{}' have the name of a wrapper, as '{}': in Python, save the model in the wrapper \
             (`model.{wrapper}.save_pretrained(dir)`)",
            files.dir().display(),
            names[0]
        );
    }
    Ok(())
}

/// Neither the files nor the model may have a tensor that the other lacks, but for those made anew.
fn check_all_used(
    vs: &VarStore,
    weights: &Weights,
    files: &ModelFiles,
    is_fresh: impl Fn(&str) -> bool,
) -> Result<()> {
    let place = files.dir().display();
    let (taken, mut made) = weights.handed_out();
    made.retain(|name| !is_fresh(name));
    let mut surplus: Vec<String> =
        vs.variables().into_keys().filter(|name| !taken.contains(name)).collect();
    surplus.sort();
    if !made.is_empty() {
        let others = match surplus.len() {
            0 => "it holds no others".to_owned(),
            count => format!("it holds {count} others: {}", listed(&surplus)),
        };
        refuse!(
            MissingKeys,
            "'{place}' lacks {} tensors of the model: {}; {others}",
            made.len(),
            listed(&made)
        );
    }
    if !surplus.is_empty() {
        refuse!(
            UnexpectedKeys,
            "'{place}' holds {} tensors that the model has no place for: {}",
            surplus.len(),
            listed(&surplus)
        );
    }
    Ok(())
}
