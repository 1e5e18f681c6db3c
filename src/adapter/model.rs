//! The handle that users hold: adapters attached to a `VarStore`.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use tch::nn::VarStore;
use tch::{no_grad, Tensor};

use super::new_adapter::{load, make_adapter};
use super::peft::directory::{check_adapter_name, SavedAdapter};
use super::registry::Registry;
use crate::adapter::attachment::{lock, Attachment};
use crate::adapter::config::LnTuningConfig;
use crate::adapter::options::{AdapterOptions, LoadOptions, SaveOptions};
use crate::adapter::peft::state_dict::{self, LoadReport};
use crate::adapter::status::{self, LayerStatus, ModelStatus, TrainableParameters};
use crate::adapter::variables::Variables;
use crate::adapter::weights::Adapter;
use crate::error::Result;
use crate::pretrained::origin;
use crate::storage::atomic;

/// The name of an adapter without a given name, as in PEFT.
pub const DEFAULT_ADAPTER: &str = "default";

/// Adapters attached to the variables of a `VarStore`.
///
/// Attaching freezes every variable and makes the selected ones trainable. The outputs are, bit for bit, those of the
/// frozen model. They may differ from those before in the last digits (2e-6 in f32), as after `VarStore::freeze`:
/// libtorch multiplies an input of three dimensions that is not contiguous in another way once a weight needs no
/// gradient. The model itself does not change: its layers share their variables with the `VarStore`, and an adapter
/// swaps the storage behind them. So forward passes do not use this type. It keeps handles of the variables and does
/// not borrow the `VarStore`.
///
/// Each call checks for changes to the variables by user code: it follows another kind or device, sees the variables
/// that were made since (no adapter trains them, so training and saving refuse those that are trainable), and refuses
/// an overwritten base with [`ErrorKind::BaseChanged`](crate::ErrorKind::BaseChanged). Dropping the handle leaves the
/// variables as they are; [`unload`](Self::unload) restores the base.
///
/// Values that other optimisers write into the selected variables belong to the adapter. Writes through C++'s `data()`,
/// as tch's `nn::Sgd` makes them, raise no version: in the base, [`save_pretrained`](Self::save_pretrained), merging
/// and unloading find them by eight elements of each variable, so a write to other elements alone is not found.
///
/// ```
/// # use tch::{nn, nn::Module, Device, Kind, Tensor};
/// use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel};
///
/// let vs = nn::VarStore::new(Device::Cpu);
/// let net = nn::seq()
///     .add(nn::linear(vs.root() / "up", 4, 8, Default::default()))
///     .add(nn::layer_norm(vs.root() / "norm", vec![8], Default::default()));
///
/// let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
/// assert_eq!(
///     tuned.trainable_parameters().to_string(),
///     "trainable params: 16 || all params: 72 || trainable%: 22.2222"
/// );
/// let mut opt = tuned.optimizer(AdamW::default(), 5e-3)?;
/// let x = Tensor::randn([2, 4], (Kind::Float, Device::Cpu));
/// opt.backward_step(&net.forward(&x).square().mean(Kind::Float))?;
/// let dir = tempfile::tempdir()?;
/// tuned.save_pretrained(dir.path())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "PeftModel")]
#[doc(alias = "LNTuningModel")]
#[derive(Debug)]
pub struct LnTuningModel {
    pub(crate) attachment: Arc<Mutex<Attachment>>,
}

impl LnTuningModel {
    /// Attaches an adapter named `default` and makes it active. Without `target_modules`, the modules follow, as in
    /// PEFT, from the `model_type` of the directory from which the variables were loaded. If there is no directory, or
    /// PEFT does not know the type, every norm is tuned that is recognised by name and shape.
    ///
    /// # Errors
    /// `EmptyVarStore`; those of [`Selection::new`](crate::Selection::new); `UnsupportedVariable` or `TiedTensors` if a
    /// selected tensor cannot be trained; `InvalidState` if adapters of another handle are attached. The variables are
    /// then as before.
    #[doc(alias = "get_peft_model")]
    pub fn new(vs: &VarStore, config: LnTuningConfig) -> Result<Self> {
        Self::with_adapter_name(vs, config, DEFAULT_ADAPTER)
    }

    /// [`new`](Self::new) with a name for the adapter.
    ///
    /// # Errors
    /// As [`new`](Self::new), and `InvalidAdapterName`.
    pub fn with_adapter_name(vs: &VarStore, config: LnTuningConfig, name: &str) -> Result<Self> {
        Self::with_options(vs, config, name, &AdapterOptions::default())
    }

    /// [`new`](Self::new) with a name for the adapter and options.
    ///
    /// # Errors
    /// As [`new`](Self::new), and `InvalidAdapterName`.
    pub fn with_options(
        vs: &VarStore,
        config: LnTuningConfig,
        name: &str,
        options: &AdapterOptions,
    ) -> Result<Self> {
        Self::attach(vs, name, |attachment| make_adapter(attachment, config, options, None))
    }

    /// Attaches an adapter that PEFT or [`save_pretrained`](Self::save_pretrained) wrote, for inference.
    ///
    /// # Errors
    /// As [`new`](Self::new) and [`from_pretrained_with`](Self::from_pretrained_with).
    pub fn from_pretrained(vs: &VarStore, dir: impl AsRef<Path>) -> Result<Self> {
        let options = LoadOptions::default();
        Self::from_pretrained_with(vs, dir, DEFAULT_ADAPTER, &options).map(|(model, _)| model)
    }

    /// [`from_pretrained`](Self::from_pretrained) with a name for the adapter and options, and a report on the keys.
    ///
    /// An adapter may have the names of another layout of the model: that of a former version of transformers (LLaVA's
    /// `language_model.model.layers`, ViT's `encoder.layer`), of the text model or the image tower alone, or of the
    /// class without a head. It is taken if all of its tensors then have a place, and is saved with the names of now.
    ///
    /// # Errors
    /// `MissingFile`, `CorruptFile`, `DuplicateKey`, `NonFinite` and those of [`LnTuningConfig::from_file`] for the
    /// files; `MissingKeys`, `UnexpectedKeys`, `ShapeMismatch` or `KindMismatch` if the adapter does not fit the model.
    /// The variables are then as before.
    pub fn from_pretrained_with(
        vs: &VarStore,
        dir: impl AsRef<Path>,
        name: &str,
        options: &LoadOptions,
    ) -> Result<(Self, LoadReport)> {
        let files = SavedAdapter::open(dir)?;
        let mut report = LoadReport::default();
        let model = Self::attach(vs, name, |attachment| {
            load(attachment, files, name, options, &mut report)
        })?;
        Ok((model, report))
    }

    fn attach(
        vs: &VarStore,
        name: &str,
        make: impl FnOnce(&Attachment) -> Result<Adapter>,
    ) -> Result<Self> {
        check_adapter_name(name)?;
        let mut registry = Registry::lock();
        registry.check_free(vs)?;
        let mut attachment = Attachment::new(Variables::of(vs)?, origin::model(vs));
        no_grad(|| {
            let adapter = make(&attachment)?;
            attachment.remember_base()?;
            attachment.insert(name, adapter)?;
            attachment.active = Some(name.to_owned());
            attachment.freeze_all().and_then(|()| attachment.apply()).inspect_err(|_| {
                // Best effort: this may fail again.
                attachment.active = None;
                let _ = attachment.apply();
                let _ = attachment.forget_requires_grad();
            })
        })?;
        let attachment = Arc::new(Mutex::new(attachment));
        registry.add(vs, &attachment);
        Ok(LnTuningModel { attachment })
    }

    /// Adds another adapter, which starts from the base's weights. Call [`set_adapter`](Self::set_adapter) to use it.
    ///
    /// # Errors
    /// `DuplicateAdapter`, `InvalidAdapterName`, and as [`new`](Self::new). Nothing changes then.
    pub fn add_adapter(&mut self, name: &str, config: LnTuningConfig) -> Result<()> {
        self.add_adapter_with(name, config, &AdapterOptions::default())
    }

    /// [`add_adapter`](Self::add_adapter) with options.
    ///
    /// # Errors
    /// As [`add_adapter`](Self::add_adapter).
    pub fn add_adapter_with(
        &mut self,
        name: &str,
        config: LnTuningConfig,
        options: &AdapterOptions,
    ) -> Result<()> {
        self.insert(name, |attachment| make_adapter(attachment, config, options, None))
    }

    /// Adds an adapter from a directory. Call [`set_adapter`](Self::set_adapter) to use it.
    ///
    /// # Errors
    /// As [`add_adapter`](Self::add_adapter) and [`from_pretrained_with`](Self::from_pretrained_with).
    pub fn load_adapter(
        &mut self,
        dir: impl AsRef<Path>,
        name: &str,
        options: &LoadOptions,
    ) -> Result<LoadReport> {
        self.attachment().check_new(name)?;
        let files = SavedAdapter::open(dir)?;
        let mut report = LoadReport::default();
        self.insert(name, |attachment| load(attachment, files, name, options, &mut report))?;
        Ok(report)
    }

    pub(crate) fn insert(
        &mut self,
        name: &str,
        make: impl FnOnce(&Attachment) -> Result<Adapter>,
    ) -> Result<()> {
        check_adapter_name(name)?;
        self.with_attachment(|attachment| {
            attachment.check_new(name)?;
            let adapter = make(attachment)?;
            attachment.insert(name, adapter)
        })
    }

    /// The number of trainable weights, and that of all weights of the base and the adapters, as PEFT counts them.
    #[doc(alias = "print_trainable_parameters")]
    #[doc(alias = "get_nb_trainable_parameters")]
    pub fn trainable_parameters(&self) -> TrainableParameters {
        TrainableParameters::of(&self.followed())
    }

    /// The status of every module with adapters, in natural order of the paths.
    #[doc(alias = "get_layer_status")]
    pub fn layer_status(&self) -> Vec<LayerStatus> {
        status::layers(&self.attachment())
    }

    /// The status of all adapters.
    #[doc(alias = "get_model_status")]
    pub fn model_status(&self) -> ModelStatus {
        status::model(&self.followed())
    }

    /// Writes every adapter as a PEFT directory: `adapter_config.json`, `adapter_model.safetensors` and a model card.
    ///
    /// The adapter `default` is written to `dir` itself, any other to `dir/<name>`. An existing card keeps its text.
    /// Either all files are written or, on an error, none; if the process is killed, the directory is the old or the
    /// new one, whole. For that, a directory whose configuration changes too is exchanged for another one, with links
    /// to all else in it.
    ///
    /// # Errors
    /// `Io` or `MissingFile` if the operating system refuses; `BaseChanged` if the base was overwritten meanwhile;
    /// `InvalidState` if trainable variables were made since attaching, which no adapter saves.
    pub fn save_pretrained(&self, dir: impl AsRef<Path>) -> Result<()> {
        self.save_pretrained_with(dir, &SaveOptions::default())
    }

    /// [`save_pretrained`](Self::save_pretrained) with options.
    ///
    /// # Errors
    /// As [`save_pretrained`](Self::save_pretrained), and `UnknownAdapter` for a selected adapter that does not exist.
    pub fn save_pretrained_with(&self, dir: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        self.with_attachment(|attachment| {
            attachment.check_base()?;
            attachment.check_claimed()?;
            let contents = state_dict::files(attachment, dir.as_ref(), DEFAULT_ADAPTER, options)?;
            atomic::write(&contents)
        })
    }

    /// Copies of an adapter's tensors, under PEFT's keys, in the kind in which they are trained.
    ///
    /// # Errors
    /// `UnknownAdapter`.
    #[doc(alias = "get_peft_model_state_dict")]
    pub fn state_dict(&self, name: &str) -> Result<Vec<(String, Tensor)>> {
        self.with_attachment(|attachment| state_dict::tensors(attachment.current(name)?))
    }

    /// Overwrites the tensors of an adapter, active, merged or neither. The base does not change. Keys may be those of
    /// another layout of the model, such as that of a former version of transformers.
    ///
    /// # Errors
    /// `UnknownAdapter`, and those of [`from_pretrained_with`](Self::from_pretrained_with) for tensors that do not fit.
    /// Nothing changes then.
    #[doc(alias = "set_peft_model_state_dict")]
    pub fn load_state_dict(
        &mut self,
        name: &str,
        tensors: &[(String, Tensor)],
        options: &LoadOptions,
    ) -> Result<LoadReport> {
        self.with_attachment(|attachment| {
            let report = state_dict::load(attachment.adapter_mut(name)?, name, tensors, options)?;
            attachment.outdate(name, |_| true)?;
            Ok(report)
        })
    }

    /// Runs `f` without recording a graph, after following changes by user code.
    pub(crate) fn with_attachment<T>(
        &self,
        f: impl FnOnce(&mut Attachment) -> Result<T>,
    ) -> Result<T> {
        let mut attachment = self.attachment();
        no_grad(|| {
            attachment.sync()?;
            f(&mut attachment)
        })
    }

    /// The state, with the variables that were made since the last call.
    fn followed(&self) -> MutexGuard<'_, Attachment> {
        let mut attachment = self.attachment();
        attachment.variables.follow();
        attachment
    }

    pub(crate) fn attachment(&self) -> MutexGuard<'_, Attachment> {
        lock(&self.attachment)
    }
}
