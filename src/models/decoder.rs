//! Decoder-only language models with rotary positions, as transformers' `…ForCausalLM`.

use std::path::Path as FilePath;

use tch::nn::{Init, Path, VarStore};
use tch::{Device, Kind, Tensor};

use super::attention::{capped, Attention, Pass};
use super::decoder_config::{DecoderConfig, NormPlaces, QkNorm};
use super::parts::{Linear, Norm, Projections};
use super::rope::Rope;
use super::weights::{filled, Weights};
use crate::error::{Error, ErrorKind, Result};
use crate::pretrained::ModelFiles;

/// A decoder-only language model: embeddings, blocks of attention and gated MLP with RMSNorms, a head.
///
/// Variables are named as in transformers: `model.layers.0.input_layernorm.weight`, …. Those that the `VarStore` holds
/// already are used, so that it can be filled from a checkpoint first.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    embed: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    head: Tensor,
}

#[derive(Debug)]
struct Layer {
    attention: Attention,
    /// Gate and up.
    inner: Projections,
    down: Linear,
    before_attention: Option<Norm>,
    after_attention: Option<Norm>,
    before_mlp: Option<Norm>,
    after_mlp: Option<Norm>,
}

impl Decoder {
    /// Makes the model from the variables below `path`, adding those that are not there.
    ///
    /// # Errors
    /// `ShapeMismatch` where a variable that is there has another shape; `Torch`.
    pub fn new(path: &Path, config: &DecoderConfig) -> Result<Self> {
        Self::build(&Weights::new(path), config)
    }

    /// Opens a model directory of transformers and fills a `VarStore` with its weights, on `device` and in `kind`
    /// (`None`: each as on disk).
    ///
    /// # Errors
    /// What [`ModelFiles::open`] and [`DecoderConfig::from_value`] say; `MissingKeys`, `UnexpectedKeys`,
    /// `ShapeMismatch` where the tensors are not those of the model.
    ///
    /// ```no_run
    /// use ln_tuning::{models::Decoder, LnTuningConfig, LnTuningModel};
    /// let device = ln_tuning::device::best_device();
    /// let (vs, model) = Decoder::from_pretrained("Llama-3.2-1B", device, None)?;
    /// let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn from_pretrained(
        dir: impl AsRef<FilePath>,
        device: Device,
        kind: impl Into<Option<Kind>>,
    ) -> Result<(VarStore, Self)> {
        let files = ModelFiles::open(dir)?;
        let config = DecoderConfig::from_value(files.config())?;
        // A head that is tied may stand in the file as well.
        let tied_head = |name: &str| config.tied && name == "lm_head.weight";
        filled(
            &files,
            device,
            kind,
            |name| !tied_head(name),
            |weights| Self::build(weights, &config),
        )
    }

    fn build(weights: &Weights, config: &DecoderConfig) -> Result<Self> {
        let init = Init::Randn { mean: 0., stdev: config.initializer_range };
        let (vocab, size) = (config.vocab_size, config.hidden_size);
        let embed = weights.tensor("model.embed_tokens.weight", &[vocab, size], init)?;
        let head = match config.tied {
            true => embed.shallow_clone(),
            false => weights.tensor("lm_head.weight", &[vocab, size], init)?,
        };
        let layers = (0..config.layers).map(|layer| Layer::build(weights, config, layer));
        Ok(Decoder {
            embed,
            layers: layers.collect::<Result<_>>()?,
            norm: Norm::build(weights, config, "model.norm", size)?,
            head,
            config: config.clone(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Token ids `[batch, length]` to the hidden states `[batch, length, hidden]` in front of the head.
    /// `attention_mask` `[batch, length]` is 1 for tokens and 0 for padding, on either side.
    ///
    /// # Errors
    /// `ShapeMismatch` for other shapes; `Torch` for ids outside the vocabulary or another device than the model's.
    pub fn hidden_states(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let size = input_ids.size();
        let mask = attention_mask.map(Tensor::size);
        if size.len() != 2 || mask.as_ref().is_some_and(|mask| *mask != size) {
            return Err(Error::new(
                ErrorKind::ShapeMismatch,
                format!("the ids have shape {size:?} and the mask {mask:?}, expected [batch, length] for both"),
            ));
        }
        let config = &self.config;
        let mut hidden = Tensor::f_embedding(&self.embed, input_ids, -1, false, false)?;
        if config.embedding_scale != 1. {
            // Rounded to the model's kind first, as the reference does.
            let factor = Tensor::from(config.embedding_scale).f_to_kind(hidden.f_kind()?)?;
            hidden = hidden.f_mul_scalar(factor.f_double_value(&[])?)?;
        }
        let tokens = attention_mask.map(|mask| mask.f_to_kind(Kind::Bool)).transpose()?;
        let (kind, device) = (hidden.f_kind()?, hidden.device());
        let tables = |rope: &Rope| rope.tables(config.rotary_dim, 0, size[1], kind, device);
        let angles = config.ropes.iter().map(tables).collect::<Result<_>>()?;
        let pass = Pass { angles, tokens: tokens.as_ref(), train };
        for layer in &self.layers {
            hidden = layer.forward(&hidden, &pass, config)?;
        }
        self.norm.forward(&hidden)
    }

    /// Token ids `[batch, length]` to logits `[batch, length, vocabulary]`.
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states).
    pub fn logits(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let hidden = self.hidden_states(input_ids, attention_mask, train)?;
        let logits = hidden.f_linear(&self.head, None::<&Tensor>)?;
        let logits = scaled(logits, 1. / self.config.logit_divisor)?;
        capped(logits, self.config.logit_cap)
    }
}

impl Layer {
    fn build(weights: &Weights, config: &DecoderConfig, layer: i64) -> Result<Self> {
        let (size, inner) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let init = Init::Randn { mean: 0., stdev: config.initializer_range };
        let linear = |part: &str, from: i64, to: i64, bias: bool| {
            Linear::build(weights, &name(part), (from, to), bias, init)
        };
        let norm = |part: &str| Norm::build(weights, config, &name(part), size);
        let sized_norm = |part: &str, size| Norm::build(weights, config, &name(part), size);
        let (wide, narrow) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let norm = |part: &str| norm(part).map(Some);
        let (before_attention, after_attention, before_mlp, after_mlp) = match config.norms {
            NormPlaces::Before => {
                (norm("input_layernorm")?, None, norm("post_attention_layernorm")?, None)
            }
            NormPlaces::After => {
                (None, norm("post_attention_layernorm")?, None, norm("post_feedforward_layernorm")?)
            }
            NormPlaces::Both => (
                norm("input_layernorm")?,
                norm("post_attention_layernorm")?,
                norm("pre_feedforward_layernorm")?,
                norm("post_feedforward_layernorm")?,
            ),
        };
        let qk_norms = |q: i64, k: i64| -> Result<Option<(Norm, Norm)>> {
            Ok(Some((sized_norm("self_attn.q_norm", q)?, sized_norm("self_attn.k_norm", k)?)))
        };
        let (qkv, inner_layers) = match config.fused {
            true => {
                let (all, both) = (vec![wide, narrow, narrow], vec![inner, inner]);
                let qkv = linear("self_attn.qkv_proj", size, all.iter().sum(), config.qkv_bias)?;
                let gate_up = linear("mlp.gate_up_proj", size, 2 * inner, config.mlp_bias)?;
                (Projections::Fused(qkv, all), Projections::Fused(gate_up, both))
            }
            false => (
                Projections::Apart(vec![
                    linear("self_attn.q_proj", size, wide, config.qkv_bias)?,
                    linear("self_attn.k_proj", size, narrow, config.qkv_bias)?,
                    linear("self_attn.v_proj", size, narrow, config.qkv_bias)?,
                ]),
                Projections::Apart(vec![
                    linear("mlp.gate_proj", size, inner, config.mlp_bias)?,
                    linear("mlp.up_proj", size, inner, config.mlp_bias)?,
                ]),
            ),
        };
        Ok(Layer {
            attention: Attention {
                qkv,
                o: linear("self_attn.o_proj", wide, size, config.o_bias)?,
                qk_norms: match config.qk_norm {
                    QkNorm::None => None,
                    QkNorm::Heads => qk_norms(config.head_dim, config.head_dim)?,
                    QkNorm::Whole => qk_norms(wide, narrow)?,
                },
                window: config.windows[layer as usize],
                rope: config.layer_ropes[layer as usize],
            },
            inner: inner_layers,
            down: linear("mlp.down_proj", inner, size, config.mlp_bias)?,
            before_attention,
            after_attention,
            before_mlp,
            after_mlp,
        })
    }

    fn forward(&self, hidden: &Tensor, pass: &Pass, config: &DecoderConfig) -> Result<Tensor> {
        let attended = optional(&self.before_attention, hidden)?;
        let attended = self.attention.forward(&attended, pass, config)?;
        let attended = optional(&self.after_attention, &attended)?;
        let hidden = hidden.f_add(&scaled(attended, config.residual_scale)?)?;
        let inner = self.inner.forward(&optional(&self.before_mlp, &hidden)?)?;
        let gate = config.activation.apply(&inner[0])?;
        let out = self.down.forward(&gate.f_mul(&inner[1])?)?;
        let out = optional(&self.after_mlp, &out)?;
        Ok(hidden.f_add(&scaled(out, config.residual_scale)?)?)
    }
}

fn optional(norm: &Option<Norm>, x: &Tensor) -> Result<Tensor> {
    norm.as_ref().map_or(Ok(x.shallow_clone()), |norm| norm.forward(x))
}

fn scaled(x: Tensor, factor: f64) -> Result<Tensor> {
    match factor == 1. {
        true => Ok(x),
        false => Ok(x.f_mul_scalar(factor)?),
    }
}
