//! Decoder-only language models with rotary positions, as transformers' `…ForCausalLM`.

use std::path::Path as FilePath;

use tch::nn::{Init, Path, VarStore};
use tch::{Device, Kind, Tensor};

use super::decoder_config::{DecoderConfig, NormPlaces, QkNorm};
use super::rope::{rotate, Rope};
use super::weights::Weights;
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

/// Several linear layers of one input: a matrix each, or one matrix for all with the widths of the parts.
#[derive(Debug)]
enum Projections {
    Apart(Vec<Linear>),
    Fused(Linear, Vec<i64>),
}

#[derive(Debug)]
struct Attention {
    qkv: Projections,
    o: Linear,
    qk_norms: Option<(Norm, Norm)>,
    window: Option<i64>,
    rope: Option<usize>,
}

#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// RMSNorm (arXiv 1910.07467).
#[derive(Debug)]
struct Norm {
    weight: Tensor,
    eps: f64,
    zero_centred: bool,
}

/// What all layers share in one pass.
struct Pass<'a> {
    /// Per rope.
    angles: Vec<(Tensor, Tensor)>,
    /// `[batch, length]`, true where there is a token; `None`: everywhere.
    tokens: Option<&'a Tensor>,
    train: bool,
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
        let vs = files.var_store(device, kind, |name| !tied_head(name))?;
        let root = vs.root();
        let weights = Weights::new(&root);
        let model = Self::build(&weights, &config)?;
        let (taken, made) = weights.names();
        let listed =
            |names: &[String]| names.iter().take(4).cloned().collect::<Vec<_>>().join("', '");
        let place = files.dir().display();
        if !made.is_empty() {
            return Err(Error::new(
                ErrorKind::MissingKeys,
                format!("'{place}' lacks {} tensors of the model: '{}'", made.len(), listed(&made)),
            ));
        }
        // Older files hold the rotary frequencies, which are computed here.
        let unused =
            |name: &String| !taken.contains(name) && !name.ends_with("rotary_emb.inv_freq");
        let mut surplus: Vec<String> = vs.variables().into_keys().filter(unused).collect();
        surplus.sort();
        if !surplus.is_empty() {
            return Err(Error::new(
                ErrorKind::UnexpectedKeys,
                format!(
                    "'{place}' holds {} tensors that the model has no place for: '{}'",
                    surplus.len(),
                    listed(&surplus)
                ),
            ));
        }
        Ok((vs, model))
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
        let linear = |part: &str, from, to, bias| {
            Linear::build(weights, config, &name(part), from, to, bias)
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

impl Projections {
    fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        match self {
            Projections::Apart(layers) => layers.iter().map(|layer| layer.forward(x)).collect(),
            Projections::Fused(layer, widths) => {
                Ok(layer.forward(x)?.f_split_with_sizes(widths, -1)?)
            }
        }
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

impl Attention {
    fn forward(&self, hidden: &Tensor, pass: &Pass, config: &DecoderConfig) -> Result<Tensor> {
        let (batch, length, _) = hidden.size3()?;
        let norm = |x: &Tensor, norm: fn(&(Norm, Norm)) -> &Norm, when: QkNorm| match &self.qk_norms
        {
            Some(norms) if config.qk_norm == when => norm(norms).forward(x),
            _ => Ok(x.shallow_clone()),
        };
        let heads =
            |x: &Tensor, heads: i64, which: Option<fn(&(Norm, Norm)) -> &Norm>| -> Result<Tensor> {
                let split = [batch, length, heads, config.head_dim];
                let Some(which) = which else { return Ok(x.f_reshape(split)?.f_transpose(1, 2)?) };
                let x = norm(x, which, QkNorm::Whole)?.f_reshape(split)?;
                let x = norm(&x, which, QkNorm::Heads)?.f_transpose(1, 2)?;
                self.rope.map_or(Ok(x.shallow_clone()), |rope| rotate(&x, &pass.angles[rope]))
            };
        let qkv = self.qkv.forward(hidden)?;
        let q = heads(&qkv[0], config.heads, Some(|norms| &norms.0))?;
        let k = heads(&qkv[1], config.kv_heads, Some(|norms| &norms.1))?;
        let v = heads(&qkv[2], config.kv_heads, None)?;
        let mask = self.mask(length, pass, hidden.device())?;
        let dropout = if pass.train { config.attention_dropout } else { 0. };
        let grouped = config.heads != config.kv_heads;
        let attended = match config.attention_cap {
            None => Tensor::f_scaled_dot_product_attention(
                &q,
                &k,
                &v,
                mask.as_ref(),
                dropout,
                mask.is_none(),
                config.attention_scale,
                grouped,
            )?,
            // The fused kernels have no cap on the scores.
            Some(_) => {
                let repeat = |x: Tensor| {
                    x.f_repeat_interleave_self_int(config.heads / config.kv_heads, 1, None)
                };
                let scores = q.f_matmul(&repeat(k)?.f_transpose(2, 3)?)?;
                let scores =
                    capped(scores.f_mul_scalar(config.attention_scale)?, config.attention_cap)?;
                let mask = match mask {
                    Some(mask) => mask,
                    None => causal(length, None, hidden.device())?,
                };
                let scores = scores.f_masked_fill(&mask.f_logical_not()?, f64::NEG_INFINITY)?;
                let weights = scores.f_softmax(-1, Kind::Float)?.f_to_kind(q.f_kind()?)?;
                weights.f_dropout(dropout, pass.train)?.f_matmul(&repeat(v)?)?
            }
        };
        let wide = config.heads * config.head_dim;
        self.o.forward(&attended.f_transpose(1, 2)?.f_reshape([batch, length, wide])?)
    }

    /// True where a position may look; none where plain causality is all there is.
    fn mask(&self, length: i64, pass: &Pass, device: Device) -> Result<Option<Tensor>> {
        let window = self.window.filter(|window| *window < length);
        let Some(tokens) = pass.tokens else {
            return window.map(|window| causal(length, Some(window), device)).transpose();
        };
        let seen = causal(length, window, device)?
            .f_logical_and(&tokens.f_unsqueeze(1)?.f_unsqueeze(1)?)?;
        // Padding looks at itself: a row without any place to look at is not a number.
        let own = Tensor::f_eye(length, (Kind::Bool, device))?;
        Ok(Some(seen.f_logical_or(&own)?))
    }
}

/// `[length, length]`, true for each position and those before it, as far as the window goes.
fn causal(length: i64, window: Option<i64>, device: Device) -> Result<Tensor> {
    let seen = Tensor::f_ones([length, length], (Kind::Bool, device))?.f_tril(0)?;
    match window {
        Some(window) => Ok(seen.f_triu(1 - window)?),
        None => Ok(seen),
    }
}

/// cap · tanh(x / cap)
fn capped(x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        Some(cap) => Ok(x.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?),
        None => Ok(x),
    }
}

impl Linear {
    fn build(
        weights: &Weights,
        config: &DecoderConfig,
        name: &str,
        from: i64,
        to: i64,
        bias: bool,
    ) -> Result<Self> {
        let init = Init::Randn { mean: 0., stdev: config.initializer_range };
        let weight = weights.tensor(&format!("{name}.weight"), &[to, from], init)?;
        let bias = match bias {
            true => Some(weights.tensor(&format!("{name}.bias"), &[to], Init::Const(0.))?),
            false => None,
        };
        Ok(Linear { weight, bias })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&self.weight, self.bias.as_ref())?)
    }
}

impl Norm {
    fn build(weights: &Weights, config: &DecoderConfig, name: &str, size: i64) -> Result<Self> {
        let init = Init::Const(if config.zero_centred { 0. } else { 1. });
        Ok(Norm {
            weight: weights.tensor(&format!("{name}.weight"), &[size], init)?,
            eps: config.norm_eps,
            zero_centred: config.zero_centred,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let shape = self.weight.size();
        if !self.zero_centred {
            return Ok(x.f_rms_norm(&shape, Some(&self.weight), self.eps)?);
        }
        // Gemma's: in f32, 1 + w included, since that sum would be rounded in bf16.
        let weight = self.weight.f_to_kind(Kind::Float)?.f_add_scalar(1.)?;
        let normed = x.f_to_kind(Kind::Float)?.f_rms_norm(&shape, Some(&weight), self.eps)?;
        Ok(normed.f_to_kind(x.f_kind()?)?)
    }
}
