//! Encoder-decoder language models, as transformers' `T5ForConditionalGeneration` and `BartForConditionalGeneration`.

mod config;
mod distance;
mod norm;
mod stack;

use std::path::Path as FilePath;

use serde_json::Value;
use tch::nn::{Init, Path, VarStore};
use tch::{no_grad, Device, Kind, Tensor};

use crate::error::{Error, ErrorKind, Result};
use crate::models::generation::{generated, GenerateOptions, Step};
use crate::models::weights::{filled, Weights};
use crate::pretrained::ModelFiles;
pub use config::Seq2SeqConfig;
use config::{Family, Generation};
use stack::{Cache, Source, Stack};

/// An encoder-decoder language model.
///
/// Variables are named as in transformers: `encoder.block.0.layer.0.layer_norm.weight`, …. Tied embeddings are one
/// variable (`shared.weight`, `model.shared.weight`).
#[derive(Debug)]
#[doc(alias = "T5ForConditionalGeneration")]
#[doc(alias = "MT5ForConditionalGeneration")]
#[doc(alias = "BartForConditionalGeneration")]
pub struct Seq2Seq {
    config: Seq2SeqConfig,
    encoder: Stack,
    decoder: Stack,
    head: Tensor,
    logits_bias: Option<Tensor>,
}

impl Seq2Seq {
    /// Makes the model from the variables below `path`, adding those that are not there.
    ///
    /// # Errors
    /// `ShapeMismatch` where a variable that is there has another shape; `Torch`.
    pub fn new(path: &Path, config: &Seq2SeqConfig) -> Result<Self> {
        Self::build(&Weights::new(path), config)
    }

    /// Opens a model directory of transformers and fills a `VarStore` with its weights, on `device` and in `kind`
    /// (`None`: each as on disk). In f16, the outer layers of T5's MLPs are in f32 all the same, as in transformers.
    ///
    /// # Errors
    /// What [`ModelFiles::open`] and [`Seq2SeqConfig::from_value`] say; `MissingKeys`, `UnexpectedKeys`,
    /// `ShapeMismatch` where the tensors are not those of the model.
    ///
    /// ```no_run
    /// use ln_tuning::{models::Seq2Seq, LnTuningConfig, LnTuningModel};
    /// let device = ln_tuning::device::best_device();
    /// let (vs, model) = Seq2Seq::from_pretrained("flan-t5-small", device, None)?;
    /// let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn from_pretrained(
        dir: impl AsRef<FilePath>,
        device: Device,
        kind: impl Into<Option<Kind>>,
    ) -> Result<(VarStore, Self)> {
        Self::open(ModelFiles::open(dir)?, device, kind.into())
    }

    pub(in crate::models) fn open(
        mut files: ModelFiles,
        device: Device,
        kind: Option<Kind>,
    ) -> Result<(VarStore, Self)> {
        let mut config = Seq2SeqConfig::from_value(files.config())?;
        if let Some(options) = generation_config(files.dir())? {
            config.generation = Generation::from_value(&options, None, None)?;
        }
        let unused = settle_names(&mut files, &config)?;
        let wanted = |name: &str| !unused.iter().any(|unused| unused == name);
        let build = |weights: &Weights| Self::build(weights, &config);
        let (vs, model) = filled(&files, device, kind, wanted, build)?;
        if config.family == Family::T5 {
            keep_in_f32(&vs, &files)?;
        }
        Ok((vs, model))
    }

    fn build(weights: &Weights, config: &Seq2SeqConfig) -> Result<Self> {
        let (vocab, bart) = (config.vocab_size, config.family == Family::Bart);
        let init = Init::Randn { mean: 0., stdev: config.init };
        let shape = [vocab, config.hidden_size];
        let [shared, encoder, decoder, head] = embedding_names(config.family);
        let shared = weights.tensor(shared, &shape, init)?;
        let embedding = |name: &str| match config.tied {
            true => weights.tied(name, &shared),
            false => weights.tensor(name, &shape, init),
        };
        Ok(Seq2Seq {
            encoder: Stack::build(weights, config, false, embedding(encoder)?)?,
            decoder: Stack::build(weights, config, true, embedding(decoder)?)?,
            head: embedding(head)?,
            logits_bias: match bart {
                true => Some(weights.buffer("final_logits_bias", &[1, vocab])?),
                false => None,
            },
            config: config.clone(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &Seq2SeqConfig {
        &self.config
    }

    /// Token ids `[batch, length]` to the encoder's hidden states `[batch, length, hidden]`. `attention_mask`
    /// `[batch, length]` is 1 for tokens and 0 for padding, on either side; `None`: there is no padding.
    ///
    /// # Errors
    /// `ShapeMismatch` for other shapes; `InvalidArgument` for more tokens than there are positions; `Torch` for ids
    /// outside the vocabulary or another device than the model's.
    pub fn encode(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let tokens = tokens("input", input_ids, attention_mask)?;
        self.encoder.forward(input_ids, tokens.as_ref(), None, None, train)
    }

    /// Token ids of both sides to the decoder's logits `[batch, decoder length, vocabulary]`: at each position, of the
    /// token that follows. For training, [`shift_right`](Self::shift_right) makes `decoder_input_ids` of labels.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn logits(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        decoder_input_ids: &Tensor,
        decoder_attention_mask: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let own = tokens("decoder's input", decoder_input_ids, decoder_attention_mask)?;
        let (ours, theirs) = (decoder_input_ids.size()[0], input_ids.size().first().copied());
        if Some(ours) != theirs {
            return Err(Error::new(
                ErrorKind::ShapeMismatch,
                format!("the decoder has {ours} sequences, the encoder {}", theirs.unwrap_or(0)),
            ));
        }
        let hidden = self.encode(input_ids, attention_mask, train)?;
        let tokens = tokens("input", input_ids, attention_mask)?;
        let source = Source { hidden: &hidden, tokens: tokens.as_ref() };
        let decoded =
            self.decoder.forward(decoder_input_ids, own.as_ref(), Some(&source), None, train)?;
        self.head(&decoded)
    }

    /// Tokens `[batch, new]`, one after the other, with a cache of keys and values. The decoder's start token is not
    /// among them. A row that has ended is filled with padding; the tokens end where all rows have. Which tokens start,
    /// end and fill, `generation_config.json` says, else `config.json`. `on_tokens` sees the tokens of all rows as they
    /// come, and ends it by `false`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); `InvalidArgument` for options out of range; `InvalidConfig` if there is no start token; `Unsupported` if the configuration
    /// sets an option that changes the tokens and is not implemented, such as `no_repeat_ngram_size`.
    pub fn generate(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        options: &GenerateOptions,
        on_tokens: impl FnMut(&[i64]) -> bool,
    ) -> Result<Tensor> {
        let rules = &self.config.generation;
        if let Some(option) = &rules.refused {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "'{option}' is set in the configuration of generation, which is not implemented"
                ),
            ));
        }
        let start = rules.start.or(self.config.decoder_start_token_id).ok_or_else(no_start)?;
        let last = options.max_new;
        if let Some(most) = self.decoder.max_positions().filter(|most| *most < last) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("{last} tokens are asked for, 'max_position_embeddings' allows {most}"),
            ));
        }
        let pad = rules.pad.or(self.config.pad_token_id).or(rules.eos.first().copied());
        no_grad(|| {
            let hidden = self.encode(input_ids, attention_mask, false)?;
            let tokens = tokens("input", input_ids, attention_mask)?;
            let source = Source { hidden: &hidden, tokens: tokens.as_ref() };
            let mut cache = Cache::default();
            let (batch, device) = (hidden.size()[0], hidden.device());
            let place = (Kind::Int64, device);
            let first = Tensor::f_full([batch, 1], start, place)?;
            let run = Step { batch, device, eos: &rules.eos, pad };
            let mut steps = 0..;
            generated(options, run, on_tokens, |last_tokens| {
                let (ids, step) = (last_tokens.unwrap_or(&first), steps.next().unwrap_or(0));
                let decoded =
                    self.decoder.forward(ids, None, Some(&source), Some(&mut cache), false)?;
                let logits = self.head(&decoded)?.f_select(1, -1)?;
                // One token is all that is left where it is forced.
                let forced = match (step, step + 1 == last) {
                    (_, true) if rules.forced_last.is_some() => rules.forced_last,
                    (0, _) => rules.forced_first,
                    _ => None,
                };
                match forced {
                    Some(token) => {
                        let only = logits.f_full_like(f64::NEG_INFINITY)?;
                        let index = Tensor::f_full([1], token, place)?;
                        Ok(only.f_index_fill(1, &index, 0.)?)
                    }
                    None => Ok(logits),
                }
            })
        })
    }

    /// What the decoder is given for these labels `[batch, length]`: the start token, and each label where the next
    /// is to be told. Labels of -100, which the loss leaves out, become padding.
    ///
    /// # Errors
    /// `InvalidConfig` if the configuration has no `decoder_start_token_id` or `pad_token_id`; `ShapeMismatch`.
    #[doc(alias = "prepare_decoder_input_ids_from_labels")]
    pub fn shift_right(&self, labels: &Tensor) -> Result<Tensor> {
        let (config, size) = (&self.config, labels.size());
        let start = config.decoder_start_token_id.ok_or_else(no_start)?;
        let pad = config.pad_token_id.ok_or_else(|| {
            Error::new(ErrorKind::InvalidConfig, "'pad_token_id' is missing, labels need it")
        })?;
        let [batch, length @ (1..)] = size[..] else {
            return Err(Error::new(
                ErrorKind::ShapeMismatch,
                format!("the labels have shape {size:?}, expected [batch, length]"),
            ));
        };
        let start = Tensor::f_full([batch, 1], start, (labels.f_kind()?, labels.device()))?;
        let shifted = Tensor::f_cat(&[start, labels.f_narrow(1, 0, length - 1)?], 1)?;
        Ok(shifted.f_masked_fill(&shifted.f_eq(-100)?, pad)?)
    }

    /// The kind of the weights.
    pub fn kind(&self) -> Kind {
        self.encoder.kind()
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        let scale = self.config.output_scale;
        let hidden = match scale == 1. {
            true => hidden.shallow_clone(),
            false => hidden.f_mul_scalar(scale)?,
        };
        let logits = hidden.f_linear(&self.head, None::<&Tensor>)?;
        match &self.logits_bias {
            Some(bias) => Ok(logits.f_add(&bias.f_to_kind(logits.f_kind()?)?)?),
            None => Ok(logits),
        }
    }
}

fn no_start() -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        "'decoder_start_token_id' is missing, the decoder needs it",
    )
}

/// Where there are tokens, after a look at the shapes.
fn tokens(what: &str, ids: &Tensor, mask: Option<&Tensor>) -> Result<Option<Tensor>> {
    let (size, of_mask) = (ids.size(), mask.map(Tensor::size));
    if size.len() != 2 || of_mask.as_ref().is_some_and(|mask| *mask != size) {
        return Err(Error::new(
            ErrorKind::ShapeMismatch,
            format!(
                "the {what} ids have shape {size:?} and their mask {of_mask:?}, expected [batch, length] for both"
            ),
        ));
    }
    Ok(mask.map(|mask| mask.f_to_kind(Kind::Bool)).transpose()?)
}

/// The shared matrix, and those that may be tied to it: the encoder's, the decoder's, the head.
fn embedding_names(family: Family) -> [&'static str; 4] {
    match family {
        Family::T5 => [
            "shared.weight",
            "encoder.embed_tokens.weight",
            "decoder.embed_tokens.weight",
            "lm_head.weight",
        ],
        Family::Bart => [
            "model.shared.weight",
            "model.encoder.embed_tokens.weight",
            "model.decoder.embed_tokens.weight",
            "lm_head.weight",
        ],
    }
}

/// Gives tensors the names that the live model has, and says which are not needed.
fn settle_names(files: &mut ModelFiles, config: &Seq2SeqConfig) -> Result<Vec<String>> {
    let names = |files: &ModelFiles| files.variables().into_iter().map(|variable| variable.name);
    // A `BartModel` was saved.
    if config.family == Family::Bart && !names(files).any(|name| name.starts_with("model.")) {
        for name in names(files).collect::<Vec<_>>() {
            if ["encoder.", "decoder.", "shared."].iter().any(|start| name.starts_with(start)) {
                files.rename(&name, &format!("model.{name}"));
            }
        }
    }
    let mut unused: Vec<String> = names(files)
        .filter(|name| match config.family {
            Family::T5 => {
                name == "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
            }
            Family::Bart => ["model.encoder.version", "model.decoder.version"].contains(&&name[..]),
        })
        .collect();
    if !config.tied {
        return Ok(unused);
    }
    let [shared, others @ ..] = embedding_names(config.family);
    if !files.has(shared) {
        if let Some(copy) = others.iter().find(|name| files.has(name)) {
            files.rename(copy, shared);
        }
    }
    // Copies of it. One that differs is no copy, whatever the configuration says; transformers does not tie it.
    let others: Vec<_> = others.into_iter().filter(|name| files.has(name)).collect();
    if !others.is_empty() && files.has(shared) {
        let shared = files.tensor(shared)?;
        for name in others {
            let other = files.tensor(name)?;
            if other.size() == shared.size() && other.f_equal(&shared)? {
                unused.push(name.to_owned());
            }
        }
    }
    Ok(unused)
}

/// transformers reads the outer layers of T5's MLPs in f32 where the model is in f16, which they would leave.
fn keep_in_f32(vs: &VarStore, files: &ModelFiles) -> Result<()> {
    for (name, variable) in vs.variables() {
        if name.ends_with(".DenseReluDense.wo.weight") && variable.f_kind()? == Kind::Half {
            let read = files.tensor(&name)?.f_to_kind(Kind::Float)?.f_to_device(vs.device())?;
            let mut variable = variable;
            no_grad(|| variable.set_data(&read));
        }
    }
    Ok(())
}

/// `generation_config.json`, if it is there.
fn generation_config(dir: &FilePath) -> Result<Option<Value>> {
    let path = dir.join("generation_config.json");
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|e| Error::io("read", &path, e))?,
    };
    serde_json::from_str(&text).map(Some).map_err(|e| {
        let message = format!("'{}' is not JSON", path.display());
        Error::with_source(ErrorKind::InvalidConfig, message, e)
    })
}
