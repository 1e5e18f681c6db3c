//! Decoder-only language models, as transformers' `…ForCausalLM`.

mod attention;
mod cache;
mod config;
mod families;
mod family;
mod inputs;
mod layer;
mod norm;
mod pass;
mod per_layer;
mod rope;
mod training;

use std::path::Path as FilePath;
use std::rc::Rc;

use tch::nn::{Init, Path, VarStore};
use tch::{no_grad, Device, Kind, Tensor};

use super::generation::{generated, GenerateOptions, Step};
use super::parts::Linear;
use super::weights::{filled_with, Weights};
use crate::error::{Error, ErrorKind, Result};
use crate::pretrained::ModelFiles;
use attention::capped;
use cache::Cache;
pub use config::DecoderConfig;
use family::Positions;
pub use inputs::Inputs;
use layer::{dropped, scaled, Layer};
use norm::Norm;
use pass::{Pass, Span};

/// A decoder-only language model: embeddings, blocks of attention and MLP, a head.
///
/// Variables are named as in transformers: `model.layers.0.input_layernorm.weight`, …. Those that the `VarStore` holds
/// already are used, so that it can be filled from a checkpoint first.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    embed: Tensor,
    positions: Option<Tensor>,
    embed_norm: Option<Norm>,
    /// Into and out of the blocks' width, where that of the embedding is another.
    projections: Option<(Linear, Linear)>,
    layers: Vec<Layer>,
    norm: Option<Norm>,
    head: Tensor,
    head_bias: Option<Tensor>,
}

/// Buffers of former files, which are computed here.
const COMPUTED: [&str; 5] = [
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    "rotary_emb.inv_freq",
];

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
        Self::from_files(&ModelFiles::open(dir)?, device, kind)
    }

    /// [`from_pretrained`](Self::from_pretrained) from files that are open already, for
    /// [`with_progress`](ModelFiles::with_progress).
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    pub fn from_files(
        files: &ModelFiles,
        device: Device,
        kind: impl Into<Option<Kind>>,
    ) -> Result<(VarStore, Self)> {
        let config = DecoderConfig::from_value(files.config())?;
        // A head that is tied may stand in the file as well.
        let tied_head = |name: &str| config.tied && name == "lm_head.weight";
        let computed = |name: &str| COMPUTED.iter().any(|end| name.ends_with(end));
        let base = config.names.embed.split_once('.').map_or("", |(base, _)| base);
        let below_base = |name: &str| name.starts_with("lm_head.") || name.starts_with(base);
        // The files of a base model have its names without the prefix.
        let prefixed = files.variables().iter().any(|variable| variable.name.starts_with(base));
        filled_with(
            files,
            device,
            kind,
            |name| match name {
                _ if tied_head(name) || computed(name) => None,
                _ if prefixed || below_base(name) => Some(name.to_owned()),
                _ => Some(format!("{base}.{name}")),
            },
            |_| false,
            |weights| Self::build(weights, &config),
        )
    }

    fn build(weights: &Weights, config: &DecoderConfig) -> Result<Self> {
        let init = Init::Randn { mean: 0., stdev: config.initializer_range };
        let (vocab, size, width) = (config.vocab_size, config.hidden_size, config.embed_size);
        let names = &config.names;
        let embed = weights.tensor(&format!("{}.weight", names.embed), &[vocab, width], init)?;
        let head = match config.tied {
            true => embed.shallow_clone(),
            false => weights.tensor("lm_head.weight", &[vocab, width], init)?,
        };
        let positions = match config.positions {
            Positions::Learned { offset, .. } => {
                let rows = config.max_positions + offset;
                Some(weights.tensor(&format!("{}.weight", names.positions), &[rows, size], init)?)
            }
            _ => None,
        };
        let projections = match width == size {
            true => None,
            false => {
                let beside = names.embed.rsplit_once('.').map_or("", |(base, _)| base);
                let linear = |name: &str, from: i64, to: i64| {
                    let name = format!("{beside}.{name}");
                    Linear::build(weights, &name, (from, to), false, init)
                };
                Some((linear("project_in", width, size)?, linear("project_out", size, width)?))
            }
        };
        let layers = (0..config.layers).map(|layer| Layer::build(weights, config, layer));
        Ok(Decoder {
            embed,
            positions,
            embed_norm: Norm::build(weights, config, names.embed_norm, size)?,
            projections,
            layers: layers.collect::<Result<_>>()?,
            norm: Norm::build(weights, config, names.norm, size)?,
            head,
            head_bias: match config.family.head_bias {
                true => Some(weights.tensor("lm_head.bias", &[vocab], Init::Const(0.))?),
                false => None,
            },
            config: config.clone(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Token ids to the hidden states `[batch, length, hidden]` in front of the head.
    ///
    /// # Errors
    /// `ShapeMismatch` for inputs of other shapes; `InvalidArgument` for more places than the model has positions for;
    /// `Torch` for ids outside the vocabulary or another device than the model's.
    pub fn hidden_states<'a>(&self, inputs: impl Into<Inputs<'a>>) -> Result<Tensor> {
        let inputs = inputs.into();
        inputs.check()?;
        let tokens = inputs.tokens()?;
        let by_tokens = matches!(self.config.positions, Positions::Learned { by_tokens: true, .. });
        self.forward(&inputs, tokens.as_ref(), by_tokens, 0, |layer, hidden, pass| {
            layer.forward(hidden, pass, &self.config, None)
        })
    }

    /// Token ids to logits `[batch, length, vocabulary]`.
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states).
    pub fn logits<'a>(&self, inputs: impl Into<Inputs<'a>>) -> Result<Tensor> {
        self.head(&self.hidden_states(inputs)?)
    }

    /// Continues each row of `inputs`, which padding on the left brings to one length: the new tokens `[batch, new]`,
    /// with padding behind those rows that ended before others. Keys and values of what has passed are kept, so that
    /// each token is computed once. `on_tokens` sees the tokens of all rows as they come, and ends it by `false`.
    ///
    /// # Errors
    /// `InvalidArgument` for options out of range, rows that end in padding, or more positions than the model has;
    /// otherwise as [`hidden_states`](Self::hidden_states).
    ///
    /// ```no_run
    /// use ln_tuning::models::{Decoder, GenerateOptions};
    /// # let ids = tch::Tensor::from_slice2(&[[1_i64, 2]]);
    /// let (_vs, model) = Decoder::from_pretrained("Llama-3.2-1B", tch::Device::Cpu, None)?;
    /// let options = GenerateOptions::default().max_new_tokens(32).temperature(0.7).top_p(0.9);
    /// let new = model.generate(&ids, &options, |_| true)?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn generate<'a>(
        &self,
        inputs: impl Into<Inputs<'a>>,
        options: &GenerateOptions,
        on_tokens: impl FnMut(&[i64]) -> bool,
    ) -> Result<Tensor> {
        let inputs = inputs.into();
        inputs.check()?;
        if inputs.documents.is_some() || inputs.train {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "generation takes ids and an attention mask, neither packed documents nor dropout",
            ));
        }
        let (batch, length) = inputs.ids.size2()?;
        let given = inputs.tokens()?;
        if let Some(tokens) = &given {
            if !bool::try_from(tokens.f_select(1, length - 1)?.f_all()?)? {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "a row ends in padding: pad on the left for generation",
                ));
            }
        }
        let capacity = length + options.max_new;
        // The mask of all places that there will be.
        let tokens = given.map(|tokens| tokens.f_constant_pad_nd([0, options.max_new]));
        let tokens = match tokens.transpose()? {
            Some(tokens) => {
                let _ = tokens.f_narrow(1, length, options.max_new)?.f_fill_(1)?;
                Some(tokens)
            }
            None => None,
        };
        let mut cache = Cache::new(self.config.layers, capacity);
        let device = inputs.ids.device();
        let run = Step { batch, device, eos: &self.config.eos, pad: self.config.pad };
        no_grad(|| {
            generated(options, run, on_tokens, |last| {
                let ids = last.unwrap_or(inputs.ids);
                let start = cache.length;
                let total = start + ids.size2()?.1;
                let seen = tokens.as_ref().map(|tokens| tokens.f_narrow(1, 0, total));
                let (seen, ids) = (seen.transpose()?, Inputs::new(ids));
                let hidden =
                    self.forward(&ids, seen.as_ref(), true, start, |layer, hidden, pass| {
                        layer.forward(hidden, pass, &self.config, Some(&mut cache))
                    })?;
                cache.length = total;
                let last = hidden.f_narrow(1, hidden.size()[1] - 1, 1)?;
                Ok(self.head(&last)?.f_squeeze_dim(1)?)
            })
        })
    }

    /// `run` runs each of the layers.
    fn forward<'m>(
        &'m self,
        inputs: &Inputs,
        tokens: Option<&Tensor>,
        by_tokens: bool,
        start: i64,
        mut run: impl FnMut(&'m Layer, &Tensor, &Rc<Pass>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let config = &self.config;
        let (length, device) = (inputs.ids.size2()?.1, inputs.ids.device());
        let span = Span { start, length, device, tokens, by_tokens };
        let positions = span.positions(inputs.documents)?;
        let mut hidden = Tensor::f_embedding(&self.embed, inputs.ids, -1, false, false)?;
        if config.embedding_scale != 1. {
            // Rounded to the model's kind first, as the reference does.
            let factor = Tensor::from(config.embedding_scale).f_to_kind(hidden.f_kind()?)?;
            hidden = hidden.f_mul_scalar(factor.f_double_value(&[])?)?;
        }
        if let Some((into, _)) = &self.projections {
            hidden = into.forward(&hidden)?;
        }
        if let (Some(table), Positions::Learned { offset, .. }) =
            (&self.positions, config.positions)
        {
            if start + length > config.max_positions {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "{} places, and the model has {} positions",
                        start + length,
                        config.max_positions
                    ),
                ));
            }
            let rows = positions.f_add_scalar(offset)?;
            hidden = hidden.f_add(&Tensor::f_embedding(table, &rows, -1, false, false)?)?;
        }
        if let Some(norm) = &self.embed_norm {
            hidden = norm.forward(&hidden)?;
        }
        let mut hidden = dropped(hidden, config.embedding_dropout, inputs.train)?;
        let pass = Rc::new(Pass::new(config, inputs, span, &positions, hidden.f_kind()?)?);
        for layer in &self.layers {
            hidden = run(layer, &hidden, &pass)?;
        }
        if let Some(norm) = &self.norm {
            hidden = norm.forward(&hidden)?;
        }
        match &self.projections {
            Some((_, out)) => out.forward(&hidden),
            None => Ok(hidden),
        }
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = hidden.f_linear(&self.head, self.head_bias.as_ref())?;
        capped(scaled(logits, self.config.logit_scale)?, self.config.logit_cap)
    }
}
