//! DINOv2 (arXiv 2304.07193), as transformers' `Dinov2Model` and `Dinov2ForImageClassification`.

use std::collections::BTreeMap;
use std::path::Path as FilePath;

use serde_json::Value;
use tch::nn::{Init, Path, VarStore};
use tch::{Device, Kind, Tensor};

use super::activation::Activation;
use super::fields::{checked_labels, flag, integer_or, invalid, number};
use super::parts::{LayerNorm, Linear};
use super::pre_norm::{BlockNames, BlockShape, PreNormBlock};
use super::weights::{filled, filled_with_new_classifier, Weights};
use crate::error::{Error, ErrorKind, Result};
use crate::pretrained::ModelFiles;

/// The shape and the options of a DINOv2, read from a `config.json` of transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct Dinov2Config {
    block: BlockShape,
    layers: i64,
    image_size: i64,
    patch_size: i64,
    channels: i64,
    gated: bool,
    mask_token: bool,
    embedding_dropout: f64,
    /// Without a classifier the variables have no prefix.
    labels: Option<Vec<String>>,
}

impl Dinov2Config {
    /// Reads the parsed `config.json`. There is a classifier if `architectures` says so.
    ///
    /// # Errors
    /// `Unsupported` for another `model_type`, another head, or an option that changes the computation and is not
    /// implemented; `InvalidConfig` for a key that does not fit.
    pub fn from_value(config: &Value) -> Result<Self> {
        let unsupported = |what: String| Err(Error::new(ErrorKind::Unsupported, what));
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let model_type = text(config.get("model_type")).unwrap_or_default();
        if model_type != "dinov2" {
            return unsupported(format!("model_type is '{model_type}', expected dinov2"));
        }
        let class = text(config.get("architectures").and_then(|names| names.get(0)));
        let labels = match class.as_deref() {
            None | Some("Dinov2Model") => None,
            Some("Dinov2ForImageClassification") => Some(labels(config)?),
            Some(other) => {
                return unsupported(format!(
                    "the architecture is '{other}', expected Dinov2Model or Dinov2ForImageClassification"
                ));
            }
        };
        if number(config, "drop_path_rate", 0.)? != 0. {
            return unsupported("'drop_path_rate' is not 0, which is not implemented".into());
        }
        let size = integer_or(config, "hidden_size", 768)?;
        let heads = integer_or(config, "num_attention_heads", 12)?;
        let ratio = number(config, "mlp_ratio", 4.)?;
        let gated = flag(config, "use_swiglu_ffn", false)?;
        let inner = (size as f64 * ratio) as i64;
        let act = text(config.get("hidden_act")).unwrap_or_else(|| "gelu".into());
        let read = Dinov2Config {
            block: BlockShape {
                size,
                // Two thirds, rounded up to a multiple of 8.
                inner: if gated { ((inner as f64 * 2. / 3.) as i64 + 7) / 8 * 8 } else { inner },
                heads,
                qkv_bias: flag(config, "qkv_bias", true)?,
                norm_eps: number(config, "layer_norm_eps", 1e-6)?,
                activation: if gated {
                    Activation::Silu
                } else {
                    Activation::named(&act, "hidden_act")?
                },
                dropout: 0.,
                attention_dropout: number(config, "attention_probs_dropout_prob", 0.)?,
                scale: number(config, "layerscale_value", 1.)?,
                initializer_range: number(config, "initializer_range", 0.02)?,
            },
            layers: integer_or(config, "num_hidden_layers", 12)?,
            image_size: integer_or(config, "image_size", 224)?,
            patch_size: integer_or(config, "patch_size", 14)?,
            channels: integer_or(config, "num_channels", 3)?,
            gated,
            mask_token: flag(config, "use_mask_token", true)?,
            embedding_dropout: number(config, "hidden_dropout_prob", 0.)?,
            labels,
        };
        if size <= 0 || heads <= 0 || size % heads != 0 {
            return invalid(format!("'num_attention_heads' ({heads}) does not divide {size}"));
        }
        if read.patch_size <= 0 || read.image_size < read.patch_size || read.channels <= 0 {
            return invalid(format!(
                "patches of {} in images of {} with {} channels",
                read.patch_size, read.image_size, read.channels
            ));
        }
        Ok(read)
    }

    pub(super) fn model_types() -> Vec<&'static str> {
        vec!["dinov2"]
    }

    /// The names of the classes; none without a classifier.
    pub fn labels(&self) -> Option<&[String]> {
        self.labels.as_deref()
    }
}

/// By their numbers.
fn labels(config: &Value) -> Result<Vec<String>> {
    let Some(map) = config.get("id2label").and_then(Value::as_object) else {
        return Ok(vec!["LABEL_0".into(), "LABEL_1".into()]);
    };
    let numbered = map.iter().map(|(id, label)| Some((id.parse().ok()?, label.as_str()?)));
    match numbered.collect::<Option<BTreeMap<i64, &str>>>() {
        Some(labels) => Ok(labels.into_values().map(str::to_owned).collect()),
        None => invalid("'id2label' does not map numbers to names".into()),
    }
}

/// A DINOv2 with or without a classifier.
///
/// Variables are named as in transformers: `dinov2.encoder.layer.0.norm1.weight` with a classifier,
/// `encoder.layer.0.norm1.weight` without. Those that the `VarStore` holds already are used.
#[derive(Debug)]
pub struct Dinov2 {
    config: Dinov2Config,
    cls_token: Tensor,
    position_embeddings: Tensor,
    projection: Linear,
    blocks: Vec<PreNormBlock>,
    layernorm: LayerNorm,
    classifier: Option<Linear>,
}

const NAMES: BlockNames = BlockNames {
    norms: ["norm1", "norm2"],
    qkv: ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    o: "attention.o_proj",
    inner: &["mlp.fc1"],
    outer: "mlp.fc2",
    scales: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"]),
};
const GATED: BlockNames =
    BlockNames { inner: &["mlp.gate_proj", "mlp.up_proj"], outer: "mlp.down_proj", ..NAMES };

impl Dinov2 {
    /// Makes the model from the variables below `path`, adding those that are not there.
    ///
    /// # Errors
    /// `ShapeMismatch` where a variable that is there has another shape; `Torch`.
    pub fn new(path: &Path, config: &Dinov2Config) -> Result<Self> {
        Self::build(&Weights::new(path), config)
    }

    /// Opens a model directory of transformers and fills a `VarStore` with its weights, on `device` and in `kind`
    /// (`None`: each as on disk).
    ///
    /// # Errors
    /// What [`ModelFiles::open`] and [`Dinov2Config::from_value`] say; `MissingKeys`, `UnexpectedKeys`,
    /// `ShapeMismatch` where the tensors are not those of the model.
    ///
    /// ```no_run
    /// use ln_tuning::models::Dinov2;
    /// let (vs, model) = Dinov2::from_pretrained("dinov2-base", tch::Device::Cpu, None)?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn from_pretrained(
        dir: impl AsRef<FilePath>,
        device: Device,
        kind: impl Into<Option<Kind>>,
    ) -> Result<(VarStore, Self)> {
        Self::open(ModelFiles::open(dir)?, device, kind.into())
    }

    /// [`from_pretrained`](Self::from_pretrained) with a classifier for classes of your own, whose weights are
    /// initialised anew (after `tch::manual_seed`, the same each time); one that the checkpoint holds is left out.
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained); `InvalidArgument` for bad labels.
    pub fn from_pretrained_with_labels<L: Into<String>>(
        dir: impl AsRef<FilePath>,
        labels: impl IntoIterator<Item = L>,
        device: Device,
        kind: impl Into<Option<Kind>>,
    ) -> Result<(VarStore, Self)> {
        let files = ModelFiles::open(dir)?;
        let mut config = Dinov2Config::from_value(files.config())?;
        config.labels = Some(checked_labels(labels)?);
        filled_with_new_classifier(&files, device, kind, "dinov2", |w| Self::build(w, &config))
    }

    pub(super) fn open(
        files: ModelFiles,
        device: Device,
        kind: Option<Kind>,
    ) -> Result<(VarStore, Self)> {
        let config = Dinov2Config::from_value(files.config())?;
        filled(&files, device, kind, |_| true, |weights| Self::build(weights, &config))
    }

    fn build(weights: &Weights, config: &Dinov2Config) -> Result<Self> {
        let size = config.block.size;
        let base = if config.labels.is_some() { "dinov2." } else { "" };
        let init = Init::Randn { mean: 0., stdev: config.block.initializer_range };
        let embeddings = |name: &str, shape: &[i64], init: Init| {
            weights.tensor(&format!("{base}embeddings.{name}"), shape, init)
        };
        let patch = config.patch_size;
        let patches = (config.image_size / patch).pow(2);
        let kernel = [size, config.channels, patch, patch];
        if config.mask_token {
            // Of pre-training.
            let _ = embeddings("mask_token", &[1, size], Init::Const(0.))?;
        }
        let names = if config.gated { GATED } else { NAMES };
        let block = |layer: i64| {
            let prefix = format!("{base}encoder.layer.{layer}");
            PreNormBlock::build(weights, &prefix, &names, &config.block)
        };
        let norm = format!("{base}layernorm");
        Ok(Dinov2 {
            cls_token: embeddings("cls_token", &[1, 1, size], init)?,
            position_embeddings: embeddings("position_embeddings", &[1, patches + 1, size], init)?,
            projection: Linear::of(
                embeddings("patch_embeddings.projection.weight", &kernel, init)?,
                Some(embeddings("patch_embeddings.projection.bias", &[size], Init::Const(0.))?),
            ),
            blocks: (0..config.layers).map(block).collect::<Result<_>>()?,
            layernorm: LayerNorm::build(weights, &norm, size, config.block.norm_eps)?,
            classifier: match &config.labels {
                Some(labels) => {
                    let widths = (2 * size, labels.len() as i64);
                    Some(Linear::build(weights, "classifier", widths, true, init)?)
                }
                None => None,
            },
            config: config.clone(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &Dinov2Config {
        &self.config
    }

    /// The kind of the weights, which images must have too.
    pub fn kind(&self) -> Kind {
        self.cls_token.kind()
    }

    /// Images `[batch, channels, height, width]` to hidden states `[batch, 1 + patches, size]` behind the last norm: that
    /// of the class token, then those of the patches. Height and width are multiples of the patch's; position embeddings
    /// are interpolated where they are not those of the configuration.
    ///
    /// # Errors
    /// `ShapeMismatch` for other images; `Torch` for another kind or device than the model's.
    pub fn hidden_states(&self, pixel_values: &Tensor, train: bool) -> Result<Tensor> {
        let (shape, patch) = (pixel_values.size(), self.config.patch_size);
        let fits = |size: i64| size > 0 && size % patch == 0;
        let [batch, channels, height, width] = shape[..] else { return self.refused(&shape) };
        if channels != self.config.channels || !fits(height) || !fits(width) {
            return self.refused(&shape);
        }
        let (weight, bias) = (&self.projection.weight, self.projection.bias.as_ref());
        let patches = pixel_values.f_conv2d(weight, bias, [patch, patch], [0, 0], [1, 1], 1)?;
        let patches = patches.f_flatten(2, 3)?.f_transpose(1, 2)?;
        let cls = self.cls_token.f_expand([batch, -1, -1], false)?;
        let positions = self.positions(height / patch, width / patch)?;
        let hidden = Tensor::f_cat(&[cls, patches], 1)?.f_add(&positions)?;
        let mut hidden = hidden.f_dropout(self.config.embedding_dropout, train)?;
        for block in &self.blocks {
            hidden = block.forward(&hidden, None, train)?;
        }
        self.layernorm.forward(&hidden)
    }

    /// Images to logits `[batch, classes]`, from the class token and the mean of the patches.
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states); `InvalidState` if there is no classifier.
    pub fn logits(&self, pixel_values: &Tensor, train: bool) -> Result<Tensor> {
        let Some(classifier) = &self.classifier else {
            return Err(Error::new(
                ErrorKind::InvalidState,
                "this model has no classifier: its architecture is Dinov2Model",
            ));
        };
        let hidden = self.hidden_states(pixel_values, train)?;
        let patches = hidden.f_narrow(1, 1, hidden.size()[1] - 1)?;
        let mean = patches.f_mean_dim([1_i64].as_slice(), false, hidden.f_kind()?)?;
        classifier.forward(&Tensor::f_cat(&[&hidden.f_select(1, 0)?, &mean], 1)?)
    }

    fn positions(&self, rows: i64, columns: i64) -> Result<Tensor> {
        let grid = self.config.image_size / self.config.patch_size;
        if (rows, columns) == (grid, grid) {
            return Ok(self.position_embeddings.shallow_clone());
        }
        let (embeddings, size) = (&self.position_embeddings, self.config.block.size);
        let patches = embeddings.f_narrow(1, 1, grid * grid)?.f_view([1, grid, grid, size])?;
        let patches = patches.f_permute([0, 3, 1, 2])?.f_to_kind(Kind::Float)?;
        let patches = patches.f_upsample_bicubic2d([rows, columns], false, None, None)?;
        let patches = patches.f_to_kind(embeddings.f_kind()?)?;
        let patches = patches.f_permute([0, 2, 3, 1])?.f_reshape([1, rows * columns, size])?;
        Ok(Tensor::f_cat(&[&embeddings.f_narrow(1, 0, 1)?, &patches], 1)?)
    }

    fn refused<T>(&self, shape: &[i64]) -> Result<T> {
        Err(Error::new(
            ErrorKind::ShapeMismatch,
            format!(
                "the images have shape {shape:?}, expected [batch, {}, height, width] with multiples of {}",
                self.config.channels, self.config.patch_size
            ),
        ))
    }
}
