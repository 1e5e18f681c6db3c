//! CLIP (arXiv 2103.00020), as transformers' `CLIPModel`: a tower for texts, a tower for images.

use std::path::Path as FilePath;

use serde_json::Value;
use tch::nn::{Init, Path, VarStore};
use tch::{Device, Kind, Tensor};

use super::activation::Activation;
use super::fields::{integer_or, invalid, number};
use super::parts::{LayerNorm, Linear};
use super::pre_norm::{BlockNames, BlockShape, PreNormBlock};
use super::weights::{filled, Weights};
use crate::error::{Error, ErrorKind, Result};
use crate::pretrained::ModelFiles;

/// The shape and the options of a CLIP, read from a `config.json` of transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    text: BlockShape,
    text_layers: i64,
    vocab_size: i64,
    max_positions: i64,
    eos: i64,
    image: BlockShape,
    image_layers: i64,
    image_size: i64,
    patch_size: i64,
    channels: i64,
    projection: i64,
    logit_scale: f64,
}

impl ClipConfig {
    /// Reads the parsed `config.json`.
    ///
    /// # Errors
    /// `Unsupported` for another `model_type`, a quantised checkpoint or an activation that is not implemented;
    /// `InvalidConfig` for a key that does not fit.
    pub fn from_value(config: &Value) -> Result<Self> {
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        if model_type != "clip" {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("model_type is '{model_type}', expected clip"),
            ));
        }
        if config.get("quantization_config").is_some_and(|v| !v.is_null()) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "'quantization_config' is set: load a checkpoint that is not quantised",
            ));
        }
        let (text, image) = (tower(config, "text_config")?, tower(config, "vision_config")?);
        let read = ClipConfig {
            text: block(&text, (512, 2048, 8))?,
            text_layers: integer_or(&text, "num_hidden_layers", 12)?,
            vocab_size: integer_or(&text, "vocab_size", 49_408)?,
            max_positions: integer_or(&text, "max_position_embeddings", 77)?,
            eos: integer_or(&text, "eos_token_id", 49_407)?,
            image: block(&image, (768, 3072, 12))?,
            image_layers: integer_or(&image, "num_hidden_layers", 12)?,
            image_size: integer_or(&image, "image_size", 224)?,
            patch_size: integer_or(&image, "patch_size", 32)?,
            channels: integer_or(&image, "num_channels", 3)?,
            projection: integer_or(config, "projection_dim", 512)?,
            logit_scale: number(config, "logit_scale_init_value", 2.6592)?,
        };
        if read.patch_size <= 0 || read.image_size < read.patch_size || read.channels <= 0 {
            return invalid(format!(
                "patches of {} in images of {} with {} channels",
                read.patch_size, read.image_size, read.channels
            ));
        }
        Ok(read)
    }

    pub(super) fn model_types() -> Vec<&'static str> {
        vec!["clip"]
    }
}

/// The settings of one tower. In older files there is a second key, which stands for the first as a whole: what it does
/// not say is transformers' default, whatever the first says.
fn tower(config: &Value, key: &str) -> Result<Value> {
    let keys = [format!("{key}_dict"), key.to_owned()];
    let given = keys.iter().find_map(|key| config.get(key).filter(|value| !value.is_null()));
    match given {
        None => Ok(serde_json::json!({})),
        Some(tower) if tower.is_object() => Ok(tower.clone()),
        Some(_) => invalid(format!("'{key}' is not a mapping")),
    }
}

fn block(config: &Value, (size, inner, heads): (i64, i64, i64)) -> Result<BlockShape> {
    let act = config.get("hidden_act").and_then(Value::as_str).unwrap_or("quick_gelu");
    let shape = BlockShape {
        size: integer_or(config, "hidden_size", size)?,
        inner: integer_or(config, "intermediate_size", inner)?,
        heads: integer_or(config, "num_attention_heads", heads)?,
        qkv_bias: true,
        norm_eps: number(config, "layer_norm_eps", 1e-5)?,
        activation: Activation::named(act, "hidden_act")?,
        dropout: 0.,
        attention_dropout: number(config, "attention_dropout", 0.)?,
        scale: 1.,
        initializer_range: number(config, "initializer_range", 0.02)?,
    };
    if shape.size <= 0 || shape.heads <= 0 || shape.size % shape.heads != 0 {
        return invalid(format!(
            "'num_attention_heads' ({}) does not divide 'hidden_size' ({})",
            shape.heads, shape.size
        ));
    }
    Ok(shape)
}

/// Both towers of a CLIP and what brings them together.
///
/// Variables are named as in transformers: `text_model.encoder.layers.0.layer_norm1.weight`, …. Those that the `VarStore`
/// holds already are used.
#[derive(Debug)]
pub struct Clip {
    config: ClipConfig,
    tokens: Tensor,
    text_positions: Tensor,
    text_blocks: Vec<PreNormBlock>,
    text_norm: LayerNorm,
    text_projection: Linear,
    class: Tensor,
    patches: Tensor,
    image_positions: Tensor,
    pre_norm: LayerNorm,
    image_blocks: Vec<PreNormBlock>,
    post_norm: LayerNorm,
    visual_projection: Linear,
    logit_scale: Tensor,
}

const NAMES: BlockNames = BlockNames {
    norms: ["layer_norm1", "layer_norm2"],
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    o: "self_attn.out_proj",
    inner: &["mlp.fc1"],
    outer: "mlp.fc2",
    scales: None,
};

impl Clip {
    /// Makes the model from the variables below `path`, adding those that are not there.
    ///
    /// # Errors
    /// `ShapeMismatch` where a variable that is there has another shape; `Torch`.
    pub fn new(path: &Path, config: &ClipConfig) -> Result<Self> {
        Self::build(&Weights::new(path), config)
    }

    /// Opens a model directory of transformers and fills a `VarStore` with its weights, on `device` and in `kind`
    /// (`None`: each as on disk).
    ///
    /// # Errors
    /// What [`ModelFiles::open`] and [`ClipConfig::from_value`] say; `MissingKeys`, `UnexpectedKeys`, `ShapeMismatch`
    /// where the tensors are not those of the model.
    ///
    /// ```no_run
    /// use ln_tuning::models::Clip;
    /// let (vs, model) = Clip::from_pretrained("clip-vit-base-patch32", tch::Device::Cpu, None)?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn from_pretrained(
        dir: impl AsRef<FilePath>,
        device: Device,
        kind: impl Into<Option<Kind>>,
    ) -> Result<(VarStore, Self)> {
        Self::open(ModelFiles::open(dir)?, device, kind.into())
    }

    pub(super) fn open(
        files: ModelFiles,
        device: Device,
        kind: Option<Kind>,
    ) -> Result<(VarStore, Self)> {
        let config = ClipConfig::from_value(files.config())?;
        // Buffers of older files.
        let wanted = |name: &str| !name.ends_with(".embeddings.position_ids");
        filled(&files, device, kind, wanted, |weights| Self::build(weights, &config))
    }

    fn build(weights: &Weights, config: &ClipConfig) -> Result<Self> {
        let (text, image) = (&config.text, &config.image);
        let random = |shape: &BlockShape| Init::Randn { mean: 0., stdev: shape.initializer_range };
        let blocks = |tower: &str, shape: &BlockShape, layers: i64| {
            let block = |layer: i64| {
                let prefix = format!("{tower}.encoder.layers.{layer}");
                PreNormBlock::build(weights, &prefix, &NAMES, shape)
            };
            (0..layers).map(block).collect::<Result<Vec<_>>>()
        };
        let of_text = |name: &str, shape: &[i64]| {
            weights.tensor(&format!("text_model.embeddings.{name}"), shape, random(text))
        };
        let of_image = |name: &str, shape: &[i64]| {
            weights.tensor(&format!("vision_model.embeddings.{name}"), shape, random(image))
        };
        let norm = |name: &str, shape: &BlockShape| {
            LayerNorm::build(weights, name, shape.size, shape.norm_eps)
        };
        let projection = |name: &str, shape: &BlockShape| {
            Linear::build(weights, name, (shape.size, config.projection), false, random(shape))
        };
        let (patch, size) = (config.patch_size, image.size);
        let places = (config.image_size / patch).pow(2) + 1;
        Ok(Clip {
            tokens: of_text("token_embedding.weight", &[config.vocab_size, text.size])?,
            text_positions: of_text(
                "position_embedding.weight",
                &[config.max_positions, text.size],
            )?,
            text_blocks: blocks("text_model", text, config.text_layers)?,
            text_norm: norm("text_model.final_layer_norm", text)?,
            text_projection: projection("text_projection", text)?,
            class: of_image("class_embedding", &[size])?,
            patches: of_image("patch_embedding.weight", &[size, config.channels, patch, patch])?,
            image_positions: of_image("position_embedding.weight", &[places, size])?,
            // The name is transformers'.
            pre_norm: norm("vision_model.pre_layrnorm", image)?,
            image_blocks: blocks("vision_model", image, config.image_layers)?,
            post_norm: norm("vision_model.post_layernorm", image)?,
            visual_projection: projection("visual_projection", image)?,
            logit_scale: weights.tensor("logit_scale", &[], Init::Const(config.logit_scale))?,
            config: config.clone(),
        })
    }

    /// The kind of the weights, which images must have too.
    pub fn kind(&self) -> Kind {
        self.tokens.kind()
    }

    /// Token ids `[batch, length]` to hidden states `[batch, length, size]` behind the last norm. `attention_mask` is 1
    /// for tokens and 0 for padding.
    ///
    /// # Errors
    /// `ShapeMismatch` for other shapes or more places than there are positions; `Torch`.
    pub fn text_hidden_states(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let (size, most) = (input_ids.size(), self.config.max_positions);
        let mask = attention_mask.map(Tensor::size);
        if size.len() != 2 || size[1] > most || mask.as_ref().is_some_and(|mask| *mask != size) {
            return Err(Error::new(
                ErrorKind::ShapeMismatch,
                format!(
                    "the ids have shape {size:?} and the mask {mask:?}, expected [batch, up to {most}] for both"
                ),
            ));
        }
        let device = input_ids.device();
        let mut seen = Tensor::f_ones([size[1], size[1]], (Kind::Bool, device))?.f_tril(0)?;
        if let Some(mask) = attention_mask {
            let tokens = mask.f_to_kind(Kind::Bool)?.f_unsqueeze(1)?.f_unsqueeze(1)?;
            // Padding looks at itself: a row without any place to look at is not a number.
            let own = Tensor::f_eye(size[1], (Kind::Bool, device))?;
            seen = seen.f_logical_and(&tokens)?.f_logical_or(&own)?;
        }
        let positions = self.text_positions.f_narrow(0, 0, size[1])?;
        let embedded = Tensor::f_embedding(&self.tokens, input_ids, -1, false, false)?;
        let mut hidden = embedded.f_add(&positions)?;
        for block in &self.text_blocks {
            hidden = block.forward(&hidden, Some(&seen), train)?;
        }
        self.text_norm.forward(&hidden)
    }

    /// Texts to features `[batch, projection_dim]`: the projected hidden state of the end token.
    ///
    /// # Errors
    /// As [`text_hidden_states`](Self::text_hidden_states).
    #[doc(alias = "get_text_features")]
    pub fn text_features(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let hidden = self.text_hidden_states(input_ids, attention_mask, train)?;
        let at = match self.config.eos {
            // The first configurations have a wrong number; the end token is the highest of all.
            2 => input_ids.f_argmax(-1, false)?,
            eos => input_ids.f_eq(eos)?.f_to_kind(Kind::Int)?.f_argmax(-1, false)?,
        };
        let (batch, _, size) = hidden.size3()?;
        let at = at.f_view([batch, 1, 1])?.f_expand([batch, 1, size], false)?;
        self.text_projection.forward(&hidden.f_gather(1, &at, false)?.f_squeeze_dim(1)?)
    }

    /// Images `[batch, channels, height, width]` to hidden states `[batch, 1 + patches, size]` in front of the last norm.
    ///
    /// # Errors
    /// `ShapeMismatch` for images of another size; `Torch` for another kind or device than the model's.
    pub fn image_hidden_states(&self, pixel_values: &Tensor, train: bool) -> Result<Tensor> {
        let (size, config) = (pixel_values.size(), &self.config);
        let image = [config.channels, config.image_size, config.image_size];
        if size.len() != 4 || size[1..] != image {
            return Err(Error::new(
                ErrorKind::ShapeMismatch,
                format!("the images have shape {size:?}, expected [batch, {image:?}]"),
            ));
        }
        let stride = [config.patch_size; 2];
        let none = None::<&Tensor>;
        let patches = pixel_values.f_conv2d(&self.patches, none, stride, [0, 0], [1, 1], 1)?;
        let patches = patches.f_flatten(2, 3)?.f_transpose(1, 2)?;
        let class = self.class.f_expand([size[0], 1, config.image.size], false)?;
        let hidden = Tensor::f_cat(&[class, patches], 1)?.f_add(&self.image_positions)?;
        let mut hidden = self.pre_norm.forward(&hidden)?;
        for block in &self.image_blocks {
            hidden = block.forward(&hidden, None, train)?;
        }
        Ok(hidden)
    }

    /// Images to features `[batch, projection_dim]`: the projected hidden state of the class token.
    ///
    /// # Errors
    /// As [`image_hidden_states`](Self::image_hidden_states).
    #[doc(alias = "get_image_features")]
    pub fn image_features(&self, pixel_values: &Tensor, train: bool) -> Result<Tensor> {
        let class = self.image_hidden_states(pixel_values, train)?.f_select(1, 0)?;
        self.visual_projection.forward(&self.post_norm.forward(&class)?)
    }

    /// How well each image goes with each text, `[images, texts]`, from features of both: their cosines times the learned
    /// scale.
    ///
    /// # Errors
    /// `Torch` for features of another shape, kind or device.
    pub fn logits_per_image(
        &self,
        image_features: &Tensor,
        text_features: &Tensor,
    ) -> Result<Tensor> {
        let unit = |x: &Tensor| x.f_div(&x.f_norm_scalaropt_dim(2, [-1_i64], true)?);
        let cosines = unit(image_features)?.f_matmul(&unit(text_features)?.f_tr()?)?;
        Ok(cosines.f_mul(&self.logit_scale.f_exp()?)?)
    }
}
