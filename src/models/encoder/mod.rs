//! Text encoders of BERT's kind, as transformers' `…Model`, `…ForMaskedLM`, `…ForSequenceClassification` and
//! `…ForTokenClassification`.

mod config;
mod families;
mod heads;
mod layer;
mod tied;

use std::collections::HashSet;
use std::path::Path as FilePath;

use tch::nn::{Init, Path, VarStore};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, ErrorKind, Result};
use crate::models::activation::Activation;
use crate::models::parts::{LayerNorm, Linear};
use crate::models::weights::{filled_with, Weights};
use crate::pretrained::ModelFiles;
pub use config::{EncoderConfig, EncoderHead};
use families::{below, POOLER};
use heads::Head;
use layer::Layer;
use tied::TiedDecoder;

/// A text encoder: embeddings, blocks with LayerNorm behind attention and MLP, and a head.
///
/// Variables are named as in transformers, where the base model stands below a prefix if there is a head:
/// `encoder.layer.0.output.LayerNorm.weight` of `BertModel`, `bert.encoder.layer.0.output.LayerNorm.weight` of
/// `BertForSequenceClassification`. Those that the `VarStore` holds already are used, so that it can be filled from a
/// checkpoint first.
#[derive(Debug)]
pub struct Encoder {
    config: EncoderConfig,
    words: Tensor,
    positions: Tensor,
    token_types: Option<Tensor>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    pooler: Option<Linear>,
    head: Head,
}

impl Encoder {
    /// Makes the model from the variables below `path`, adding those that are not there.
    ///
    /// # Errors
    /// `ShapeMismatch` where a variable that is there has another shape; `Torch`.
    pub fn new(path: &Path, config: &EncoderConfig) -> Result<Self> {
        Self::build(&Weights::new(path), config, config.family.pooler)
    }

    /// Opens a model directory of transformers and fills a `VarStore` with its weights, on `device` and in `kind`
    /// (`None`: each as on disk). The head is the one of `architectures` in `config.json`.
    ///
    /// # Errors
    /// What [`ModelFiles::open`] and [`EncoderConfig::from_value`] say; `MissingKeys`, `UnexpectedKeys`,
    /// `ShapeMismatch` where the tensors are not those of the model.
    ///
    /// ```no_run
    /// use ln_tuning::{models::Encoder, LnTuningConfig, LnTuningModel};
    /// let device = ln_tuning::device::best_device();
    /// let (vs, model) = Encoder::from_pretrained("all-MiniLM-L6-v2", device, None)?;
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
        files: ModelFiles,
        device: Device,
        kind: Option<Kind>,
    ) -> Result<(VarStore, Self)> {
        let config = EncoderConfig::from_value(files.config())?;
        Self::from_files(&files, &config, false, device, kind)
    }

    /// [`from_pretrained`](Self::from_pretrained) with a head of your choice, whatever `architectures` says. Weights of
    /// other heads are left out, and the base model's prefix is added or removed, as transformers does; the weights of
    /// this head must be there.
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    pub fn from_pretrained_as(
        dir: impl AsRef<FilePath>,
        head: EncoderHead,
        device: Device,
        kind: impl Into<Option<Kind>>,
    ) -> Result<(VarStore, Self)> {
        let files = ModelFiles::open(dir)?;
        let config = EncoderConfig::with_any_head(files.config())?.with_head(head);
        Self::from_files(&files, &config, false, device, kind.into())
    }

    /// [`from_pretrained_as`](Self::from_pretrained_as) with a classifier for labels of your own, whose weights are
    /// initialised anew (after `tch::manual_seed`, the same each time); one that the checkpoint holds is left out.
    /// BERT's pooler, which its sequence classifier uses, is the checkpoint's where it has one.
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained); `InvalidArgument` for a head without labels, or bad labels.
    ///
    /// ```no_run
    /// use ln_tuning::models::{Encoder, EncoderHead};
    /// let head = EncoderHead::SequenceClassification;
    /// let (vs, model) =
    ///     Encoder::from_pretrained_with_labels("bert-base-uncased", head, ["ham", "spam"], tch::Device::Cpu, None)?;
    /// // … train …
    /// ln_tuning::pretrained::save(&vs, "spam-filter", &model.config().to_json())?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn from_pretrained_with_labels<L: Into<String>>(
        dir: impl AsRef<FilePath>,
        head: EncoderHead,
        labels: impl IntoIterator<Item = L>,
        device: Device,
        kind: impl Into<Option<Kind>>,
    ) -> Result<(VarStore, Self)> {
        if !head.is_classifier() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("{head:?} has no labels, expected one of the classifiers"),
            ));
        }
        let files = ModelFiles::open(dir)?;
        let config = EncoderConfig::with_any_head(files.config())?;
        let config = config.with_head(head).with_labels(labels)?;
        Self::from_files(&files, &config, true, device, kind.into())
    }

    fn from_files(
        files: &ModelFiles,
        config: &EncoderConfig,
        new_head: bool,
        device: Device,
        kind: Option<Kind>,
    ) -> Result<(VarStore, Self)> {
        let family = config.family;
        let there: HashSet<String> = files.variables().into_iter().map(|info| info.name).collect();
        let is_pooler = |name: &&str| below(name, "pooler").is_some();
        let with_pooler =
            there.iter().filter_map(|name| family.base_name(name)).any(|n| is_pooler(&n));
        let has_pooler = config.may_have_pooler()
            && (with_pooler || config.head == EncoderHead::SequenceClassification);
        let modules = config.head_modules();
        let of_head = |name: &str| {
            modules.iter().any(|module| name == *module || below(name, module).is_some())
        };
        let tied = TiedDecoder::of(config, files, &there)?;
        let renamed = |name: &str| match family.base_name(name) {
            // Buffers that transformers computes.
            Some("embeddings.position_ids" | "embeddings.token_type_ids") => None,
            Some(inside) if is_pooler(&inside) && !has_pooler => None,
            Some(inside) => Some(config.base(inside)),
            None if of_head(name) && !new_head => tied.renamed(name),
            None if family.is_of_a_head(name) => None,
            // Not known: an error, since nothing takes it.
            None => Some(name.to_owned()),
        };
        let pooler = config.base(POOLER);
        let fresh = |name: &str| {
            new_head
                && match below(name, &pooler) {
                    Some(_) => !with_pooler,
                    None => of_head(name),
                }
        };
        filled_with(files, device, kind, renamed, fresh, |weights| {
            Self::build(weights, config, has_pooler)
        })
    }

    fn build(weights: &Weights, config: &EncoderConfig, pooler: bool) -> Result<Self> {
        let init = Init::Randn { mean: 0., stdev: config.initializer_range };
        let size = config.hidden_size;
        let embedding = |name: &str, count: i64| {
            let name = config.base(&format!("embeddings.{name}.weight"));
            weights.tensor(&name, &[count, size], init)
        };
        let words = embedding("word_embeddings", config.vocab_size)?;
        let layers = (0..config.layers).map(|layer| Layer::build(weights, config, layer));
        let pooler = match pooler && config.may_have_pooler() {
            true => Some(Linear::build(weights, &config.base(POOLER), (size, size), true, init)?),
            false => None,
        };
        Ok(Encoder {
            positions: embedding("position_embeddings", config.positions)?,
            token_types: config
                .token_types
                .map(|count| embedding("token_type_embeddings", count))
                .transpose()?,
            norm: LayerNorm::build(
                weights,
                &config.base("embeddings.LayerNorm"),
                size,
                config.norm_eps,
            )?,
            layers: layers.collect::<Result<_>>()?,
            pooler,
            head: Head::build(weights, config, &words)?,
            words,
            config: config.clone(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Token ids `[batch, length]` to the last hidden states `[batch, length, hidden]`.
    ///
    /// `attention_mask` `[batch, length]` is 1 for tokens and 0 for padding, on either side; without padding, pass
    /// `None`, which is faster. `token_type_ids` `[batch, length]` tell a pair's texts apart; `None`: all 0.
    ///
    /// # Errors
    /// `ShapeMismatch` for other shapes, or more positions than there are; `InvalidArgument` for token types where
    /// the family has none; `Torch` for ids outside the vocabulary or another device than the model's.
    #[doc(alias = "last_hidden_state")]
    pub fn hidden_states(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        token_type_ids: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        self.check_inputs(input_ids, attention_mask, token_type_ids)?;
        let mut hidden = self.embedded(input_ids, token_type_ids)?;
        hidden = self.norm.forward(&hidden)?.f_dropout(self.config.dropout, train)?;
        // [batch, 1, 1, length]: the kernel spreads it, so that none of [length, length] is made.
        let mask = attention_mask
            .map(|mask| mask.f_to_kind(Kind::Bool)?.f_unsqueeze(1)?.f_unsqueeze(1))
            .transpose()?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, mask.as_ref(), train)?;
        }
        Ok(hidden)
    }

    /// The pooler's output `[batch, hidden]` from the last hidden states.
    ///
    /// # Errors
    /// `InvalidState` for a model without a pooler; `Torch`.
    #[doc(alias = "pooler_output")]
    pub fn pooled(&self, hidden_states: &Tensor) -> Result<Tensor> {
        match &self.pooler {
            Some(pooler) => {
                Activation::Tanh.apply(&pooler.forward(&hidden_states.f_select(1, 0)?)?)
            }
            None => Err(Error::new(
                ErrorKind::InvalidState,
                "the model has no pooler: neither has the checkpoint, or it is a head's that uses none",
            )),
        }
    }

    /// The head's logits: `[batch, length, vocabulary]` of a masked LM, `[batch, labels]` of a sequence classifier,
    /// `[batch, length, labels]` of a token classifier. Arguments are those of
    /// [`hidden_states`](Self::hidden_states).
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states); `InvalidState` for a model without a head.
    pub fn logits(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        token_type_ids: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let hidden = self.hidden_states(input_ids, attention_mask, token_type_ids, train)?;
        self.head.forward(&hidden, train)
    }

    fn check_inputs(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        token_type_ids: Option<&Tensor>,
    ) -> Result<()> {
        let mismatch = |message: String| Err(Error::new(ErrorKind::ShapeMismatch, message));
        let size = input_ids.size();
        let (mask, types) = (attention_mask.map(Tensor::size), token_type_ids.map(Tensor::size));
        let differs = |other: &Option<Vec<i64>>| other.as_ref().is_some_and(|other| *other != size);
        if size.len() != 2 || differs(&mask) || differs(&types) {
            return mismatch(format!(
                "the ids have shape {size:?}, the mask {mask:?}, the token types {types:?}, expected [batch, length] \
                 for all"
            ));
        }
        if size[1] > self.config.max_length() {
            return mismatch(format!(
                "the ids have {} positions, the model {}: shorten the text",
                size[1],
                self.config.max_length()
            ));
        }
        if types.is_some() && self.token_types.is_none() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("there are token_type_ids, and {} has none", self.config.model_type()),
            ));
        }
        Ok(())
    }

    fn embedded(&self, input_ids: &Tensor, token_type_ids: Option<&Tensor>) -> Result<Tensor> {
        // No gradient for the padding's row, as in transformers.
        let padding = self.config.padding_id.unwrap_or(-1);
        let words = Tensor::f_embedding(&self.words, input_ids, padding, false, false)?;
        let positions = match self.config.family.positions_from_padding {
            true => {
                let tokens = input_ids.f_ne(padding)?.f_to_kind(Kind::Int64)?;
                let places = tokens.f_cumsum(1, Kind::Int64)?.f_mul(&tokens)?;
                let places = places.f_add_scalar(padding)?;
                Tensor::f_embedding(&self.positions, &places, padding, false, false)?
            }
            false => self.positions.f_narrow(0, 0, input_ids.size()[1])?,
        };
        let words = match (&self.token_types, token_type_ids) {
            (Some(types), Some(ids)) => {
                words.f_add(&Tensor::f_embedding(types, ids, -1, false, false)?)?
            }
            (Some(types), None) => words.f_add(&types.f_select(0, 0)?)?,
            (None, _) => words,
        };
        Ok(words.f_add(&positions)?)
    }
}
