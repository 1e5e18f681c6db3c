//! The vision transformer of Dosovitskiy et al. (arXiv 2010.11929), as transformers' `ViTForImageClassification`.

use std::collections::BTreeMap;
use std::path::Path as FilePath;

use serde::{Deserialize, Serialize};
use tch::nn::{Init, ModuleT, Path, VarStore};
use tch::{Device, Kind, Tensor};

use super::activation::Activation;
use super::fields::checked_labels;
use super::parts::{LayerNorm, Linear};
use super::pre_norm::{BlockNames, BlockShape, PreNormBlock};
use super::weights::{filled, filled_with_new_classifier, Weights};
use crate::error::{Error, ErrorKind, Result};
use crate::pretrained::ModelFiles;

/// The fields of a ViT's `config.json` that shape it. Others are not looked at, as they change no computation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ViTConfig {
    /// Width of the hidden states.
    pub hidden_size: i64,
    /// Number of blocks.
    pub num_hidden_layers: i64,
    /// Attention heads per block; they divide `hidden_size`.
    pub num_attention_heads: i64,
    /// Width of the MLP's inner layer.
    pub intermediate_size: i64,
    /// The MLP's activation: `gelu`, `gelu_new`, `gelu_pytorch_tanh`, `relu` or `silu`.
    pub hidden_act: String,
    /// Added to the variance in every LayerNorm.
    pub layer_norm_eps: f64,
    /// Height and width of the image, in pixels.
    pub image_size: i64,
    /// Height and width of a patch, in pixels; it divides `image_size`.
    pub patch_size: i64,
    /// Channels of the image.
    pub num_channels: i64,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Dropout on hidden states while training.
    pub hidden_dropout_prob: f64,
    /// Dropout on attention while training.
    pub attention_probs_dropout_prob: f64,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// The classes' names; their number is the number of logits.
    pub id2label: BTreeMap<i64, String>,
}

/// Those of transformers: ViT-Base, with two classes.
impl Default for ViTConfig {
    fn default() -> Self {
        ViTConfig {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-12,
            image_size: 224,
            patch_size: 16,
            num_channels: 3,
            qkv_bias: true,
            hidden_dropout_prob: 0.,
            attention_probs_dropout_prob: 0.,
            initializer_range: 0.02,
            id2label: (0..2).map(|i| (i, format!("LABEL_{i}"))).collect(),
        }
    }
}

impl ViTConfig {
    /// Reads a `config.json` of transformers.
    ///
    /// # Errors
    /// `MissingFile` or `Io` if it cannot be read, `InvalidConfig` for bad JSON or sizes that do not fit,
    /// `Unsupported` for another `model_type` or an activation that is not implemented.
    pub fn from_file(path: impl AsRef<FilePath>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        Self::from_json(&text)
    }

    /// [`from_file`](Self::from_file) on the text of a file.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn from_json(text: &str) -> Result<Self> {
        let invalid =
            |e| Error::with_source(ErrorKind::InvalidConfig, "not a valid ViT configuration", e);
        let fields: serde_json::Value = serde_json::from_str(text).map_err(invalid)?;
        if let Some(model_type) = fields.get("model_type").filter(|t| *t != "vit") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("model_type is {model_type}, expected \"vit\""),
            ));
        }
        let config: Self = serde_json::from_value(fields).map_err(invalid)?;
        config.check()?;
        Ok(config)
    }

    /// The text of a `config.json` that transformers reads.
    pub fn to_json(&self) -> String {
        let mut fields = serde_json::json!(self);
        let label2id: BTreeMap<&String, &i64> =
            self.id2label.iter().map(|(id, label)| (label, id)).collect();
        fields["model_type"] = "vit".into();
        fields["architectures"] = serde_json::json!(["ViTForImageClassification"]);
        fields["label2id"] = serde_json::json!(label2id);
        format!("{fields:#}\n")
    }

    pub(super) fn model_types() -> Vec<&'static str> {
        vec!["vit"]
    }

    fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::new(ErrorKind::InvalidConfig, message));
        for (name, size) in [
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("num_channels", self.num_channels),
        ] {
            if size <= 0 {
                return invalid(format!("'{name}' is {size}, expected a positive number"));
            }
        }
        for (whole, part, value, divisor) in [
            ("hidden_size", "num_attention_heads", self.hidden_size, self.num_attention_heads),
            ("image_size", "patch_size", self.image_size, self.patch_size),
        ] {
            if value % divisor != 0 {
                return invalid(format!(
                    "'{part}' ({divisor}) does not divide '{whole}' ({value})"
                ));
            }
        }
        Activation::named(&self.hidden_act, "hidden_act").map(drop)
    }
}

/// An image classifier: patches, blocks with LayerNorm in front of attention and MLP, a linear head on `[CLS]`.
///
/// Variables are named as in transformers 5: `vit.layers.0.layernorm_before.weight`, …, `classifier.bias`.
#[derive(Debug)]
pub struct ViTForImageClassification {
    cls_token: Tensor,
    position_embeddings: Tensor,
    projection: Linear,
    layers: Vec<PreNormBlock>,
    layernorm: LayerNorm,
    classifier: Linear,
    image: [i64; 3],
    dropout: f64,
}

const NAMES: BlockNames = BlockNames {
    norms: ["layernorm_before", "layernorm_after"],
    qkv: ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    o: "attention.o_proj",
    inner: &["mlp.fc1"],
    outer: "mlp.fc2",
    scales: None,
};

impl ViTForImageClassification {
    /// Makes the model from the variables below `path`, adding those that are not there with initial weights as in
    /// transformers.
    ///
    /// # Errors
    /// `InvalidConfig` or `Unsupported` if the configuration does not fit together; `ShapeMismatch` where a variable
    /// that is there has another shape.
    pub fn new(path: &Path, config: &ViTConfig) -> Result<Self> {
        config.check()?;
        Self::build(&Weights::new(path), config)
    }

    /// Opens a model directory of transformers and fills a `VarStore` with its weights, on `device` and in `kind`
    /// (`None`: each as on disk).
    ///
    /// # Errors
    /// What [`ModelFiles::open`] and [`ViTConfig::from_json`] say; `MissingKeys`, `UnexpectedKeys`, `ShapeMismatch`
    /// where the tensors are not those of the model.
    pub fn from_pretrained(
        dir: impl AsRef<FilePath>,
        device: Device,
        kind: impl Into<Option<Kind>>,
    ) -> Result<(VarStore, Self)> {
        Self::open(ModelFiles::open(dir)?, device, kind.into())
    }

    /// [`from_pretrained`](Self::from_pretrained) with a classifier for classes of your own, whose weights are
    /// initialised anew (after `tch::manual_seed`, the same each time); one that the checkpoint holds is left out.
    /// The checkpoint may be one of a base model, without a classifier.
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
        let mut config = ViTConfig::from_json(&files.config().to_string())?;
        config.id2label = (0..).zip(checked_labels(labels)?).collect();
        filled_with_new_classifier(&files, device, kind, "vit", |w| Self::build(w, &config))
    }

    pub(super) fn open(
        files: ModelFiles,
        device: Device,
        kind: Option<Kind>,
    ) -> Result<(VarStore, Self)> {
        let config = ViTConfig::from_json(&files.config().to_string())?;
        filled(&files, device, kind, |_| true, |weights| Self::build(weights, &config))
    }

    fn build(weights: &Weights, config: &ViTConfig) -> Result<Self> {
        let init = Init::Randn { mean: 0., stdev: config.initializer_range };
        let (size, patch) = (config.hidden_size, config.patch_size);
        let patches = (config.image_size / patch).pow(2);
        let embeddings = |name: &str, shape: &[i64], init: Init| {
            weights.tensor(&format!("vit.embeddings.{name}"), shape, init)
        };
        let kernel = [size, config.num_channels, patch, patch];
        let shape = BlockShape {
            size,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            qkv_bias: config.qkv_bias,
            norm_eps: config.layer_norm_eps,
            activation: Activation::named(&config.hidden_act, "hidden_act")?,
            dropout: config.hidden_dropout_prob,
            attention_dropout: config.attention_probs_dropout_prob,
            scale: 1.,
            initializer_range: config.initializer_range,
        };
        let layers = (0..config.num_hidden_layers).map(|layer| {
            PreNormBlock::build(weights, &format!("vit.layers.{layer}"), &NAMES, &shape)
        });
        let classes = config.id2label.len() as i64;
        Ok(ViTForImageClassification {
            cls_token: embeddings("cls_token", &[1, 1, size], init)?,
            position_embeddings: embeddings("position_embeddings", &[1, patches + 1, size], init)?,
            projection: Linear::of(
                embeddings("patch_embeddings.projection.weight", &kernel, init)?,
                Some(embeddings("patch_embeddings.projection.bias", &[size], Init::Const(0.))?),
            ),
            layers: layers.collect::<Result<_>>()?,
            layernorm: LayerNorm::build(weights, "vit.layernorm", size, config.layer_norm_eps)?,
            classifier: Linear::build(weights, "classifier", (size, classes), true, init)?,
            image: [config.num_channels, config.image_size, config.image_size],
            dropout: config.hidden_dropout_prob,
        })
    }

    /// The kind of the weights, which images must have too.
    pub fn kind(&self) -> Kind {
        self.cls_token.kind()
    }

    /// Images `[batch, channels, height, width]` to logits `[batch, classes]`.
    ///
    /// # Errors
    /// `ShapeMismatch` for images of another size; `Torch` for another kind or device than the model's.
    pub fn logits(&self, pixel_values: &Tensor, train: bool) -> Result<Tensor> {
        let size = pixel_values.size();
        if size.len() != 4 || size[1..] != self.image {
            return Err(Error::new(
                ErrorKind::ShapeMismatch,
                format!("the images have shape {size:?}, expected [batch, {:?}]", self.image),
            ));
        }
        let (weight, bias) = (&self.projection.weight, self.projection.bias.as_ref());
        let stride = weight.size()[2];
        let patches = pixel_values.f_conv2d(weight, bias, [stride, stride], [0, 0], [1, 1], 1)?;
        let patches = patches.f_flatten(2, 3)?.f_transpose(1, 2)?;
        let cls = self.cls_token.f_expand([size[0], -1, -1], false)?;
        let hidden = Tensor::f_cat(&[cls, patches], 1)?.f_add(&self.position_embeddings)?;
        let mut hidden = hidden.f_dropout(self.dropout, train)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, None, train)?;
        }
        let cls = hidden.f_select(1, 0)?;
        self.classifier.forward(&self.layernorm.forward(&cls)?)
    }
}

/// For pipelines that are built of tch's modules. Panics where [`logits`](ViTForImageClassification::logits) fails.
impl ModuleT for ViTForImageClassification {
    fn forward_t(&self, pixel_values: &Tensor, train: bool) -> Tensor {
        match self.logits(pixel_values, train) {
            Ok(logits) => logits,
            Err(error) => panic!("{error}"),
        }
    }
}
