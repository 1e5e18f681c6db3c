//! A text encoder: embeddings, blocks with LayerNorm behind attention and MLP, a head.

use std::sync::Arc;

use tch::nn::Init;
use tch::{Kind, Tensor};

use super::config::EncoderConfig;
use super::families::POOLER;
use super::head::Head;
use super::layer::block;
use crate::autograd::recompute::Tape;
use crate::error::{refusal, refuse, Result};
use crate::kernels::number::WithNumber;
use crate::models::adapter_names::AdapterNames;
use crate::models::config::ModelConfig;
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::named_rows::rows_of_batch;
use crate::models::nn::{
    dropped, run_all, stream, Activation, Block, Linear, Mask, Norm, NormKind, Rows, Sites, Table,
    Weight, Weights,
};
use crate::pretrained;

/// A text encoder: embeddings, blocks with LayerNorm behind attention and MLP, and a head.
///
/// Variables are named as in transformers, where the base model stands below a prefix if there is a head:
/// `encoder.layer.0.output.LayerNorm.weight` of `BertModel`, `bert.encoder.layer.0.output.LayerNorm.weight` of
/// `BertForSequenceClassification`. Those that the `VarStore` holds already are used, so that it can be filled from a
/// checkpoint first.
///
/// ```no_run
/// use ln_tuning::models::{Encoder, Load, Model, ModelConfig};
/// let load = Load::on(tch::Device::Cpu).labels(["ham", "spam"]);
/// let (vs, model) = Encoder::from_pretrained_with("bert-base-uncased", &load)?;
/// // … train …
/// ln_tuning::pretrained::save(&vs, "spam-filter", &model.config().to_json())?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[doc(alias = "AutoModelForSequenceClassification")]
#[derive(Debug)]
pub struct Encoder {
    config: EncoderConfig,
    words: Weight,
    positions: Table,
    token_types: Option<Table>,
    norm: Norm,
    blocks: Vec<Block>,
    pooler: Option<Linear>,
    head: Head,
    sites: Arc<Sites>,
}

const TAKEN: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];

impl Model for Encoder {
    type Config = EncoderConfig;

    fn build(weights: &Weights, config: &EncoderConfig) -> Result<Self> {
        let init = Init::Randn { mean: 0., stdev: config.initializer_range };
        let size = config.hidden_size;
        let base = match config.head() {
            pretrained::Head::None => weights.clone(),
            _ => weights.at(config.family.prefix),
        };
        let embeddings = base.at("embeddings");
        let embedding = |name: &str, count: i64| {
            Table::build(&embeddings.at(name), "weight", [count, size], init)
        };
        let words =
            embeddings.at("word_embeddings").rows("weight", [config.vocab_size, size], init)?;
        let pooler = base.at(POOLER);
        // Files may lack a pooler where nothing stands on it.
        let has_pooler = config.may_have_pooler()
            && (config.head() != pretrained::Head::None || pooler.may_have("weight"));
        let layers = base.at(config.family.names.layers);
        let blocks = (0..config.layers).map(|at| block(&layers.at(at), config));
        let mut blocks = blocks.collect::<Result<Vec<_>>>()?;
        stream(&mut blocks, None, weights)?;
        let norm = embeddings.at("LayerNorm");
        Ok(Encoder {
            positions: embedding("position_embeddings", config.positions)?,
            token_types: config
                .token_types
                .map(|count| embedding("token_type_embeddings", count))
                .transpose()?,
            norm: Norm::build(&norm, NormKind::Layer, size, config.norm_eps)?,
            blocks,
            pooler: has_pooler
                .then(|| Linear::build(&pooler, (size, size), true, init))
                .transpose()?,
            head: Head::build(weights, config, &words)?,
            words,
            sites: weights.sites(),
            config: config.clone(),
        })
    }

    fn config(&self) -> &EncoderConfig {
        &self.config
    }

    fn kind(&self) -> Kind {
        self.words.kind().unwrap_or(Kind::Float)
    }

    fn hidden_states_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        inputs.check(self.model_type(), &TAKEN)?;
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let _rows = inputs.enter();
        let ids = inputs.needed_ids()?;
        let (length, most) = (ids.size2()?.1, self.config.max_length());
        if length > most {
            refuse!(
                ShapeMismatch,
                "the ids have {length} positions, the model {most}: shorten the text"
            );
        }
        if inputs.token_type_ids.is_some() && self.token_types.is_none() {
            refuse!(
                InvalidArgument,
                "there are token_type_ids, and {} has none",
                self.model_type()
            );
        }
        let hidden = self.norm.forward(&self.embedded(ids, inputs.token_type_ids)?)?;
        let hidden = dropped(hidden, self.config.dropout, inputs.train)?;
        let mask = Mask::tokens(inputs.attention_mask)?;
        run_all(&self.blocks, hidden, mask, inputs.train, None, tape)
    }

    fn logits_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let hidden = self.hidden_states_with(inputs, tape)?;
        let _rows = inputs.enter();
        self.head.forward(&hidden, inputs.train)
    }
}

impl Encoder {
    /// The pooler's output `[batch, hidden]` from the last hidden states.
    ///
    /// # Errors
    /// `InvalidState` for a model without a pooler; `Torch`.
    #[doc(alias = "pooler_output")]
    pub fn pooled(&self, hidden_states: &Tensor) -> Result<Tensor> {
        self.pooled_with(hidden_states, None)
    }

    /// [`pooled`](Self::pooled) where rows have adapters of their own, which may have a pooler too.
    ///
    /// # Errors
    /// As [`pooled`](Self::pooled), and those of [`Inputs::adapter_names`].
    pub fn pooled_by_row<'a>(
        &self,
        hidden_states: &Tensor,
        adapter_names: impl Into<AdapterNames<'a>>,
    ) -> Result<Tensor> {
        let batch = hidden_states.size().first().copied().unwrap_or(0);
        let rows = rows_of_batch(adapter_names.into(), batch, &self.sites)?;
        self.pooled_with(hidden_states, rows)
    }

    fn pooled_with(&self, hidden_states: &Tensor, rows: Option<Rows>) -> Result<Tensor> {
        let _rows = Rows::enter(rows);
        match &self.pooler {
            Some(pooler) => {
                Activation::Tanh.apply(&pooler.forward(&hidden_states.f_select(1, 0)?)?)
            }
            None => Err(refusal!(
                InvalidState,
                "the model has no pooler: the checkpoint has none, or the head uses none"
            )),
        }
    }

    fn embedded(&self, input_ids: &Tensor, token_type_ids: Option<&Tensor>) -> Result<Tensor> {
        // No gradient for the padding's row, as in transformers.
        let padding = self.config.padding_id.unwrap_or(-1);
        let words = self.words.lookup(input_ids, padding)?;
        let (batch, length) = input_ids.size2()?;
        let positions = match self.config.family.positions_from_padding {
            true => {
                let tokens = input_ids.f_ne_number(padding)?.f_to_kind(Kind::Int64)?;
                let places = tokens.f_cumsum(1, Kind::Int64)?.f_mul(&tokens)?;
                let places = places.f_add_number(padding)?;
                self.positions.lookup(&places, batch, padding)?
            }
            false => self.positions.part(0, length, batch)?,
        };
        let words = match (&self.token_types, token_type_ids) {
            (Some(types), Some(ids)) => words.f_add(&types.lookup(ids, batch, -1)?)?,
            (Some(types), None) => words.f_add(&types.part(0, 1, batch)?)?,
            (None, _) => words,
        };
        Ok(words.f_add(&positions)?)
    }
}
