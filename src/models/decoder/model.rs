//! A decoder: embeddings, blocks of attention and MLP, a head.

use std::rc::Rc;
use std::sync::Arc;

use tch::nn::Init;
use tch::{Device, Kind, Tensor};

use super::ahead::Ahead;
use super::config::DecoderConfig;
use super::context::{context, masks};
use super::form::Positions;
use super::head::Head;
use super::layer::block;
use crate::autograd::recompute::Tape;
use crate::error::{refuse, Result};
use crate::kernels::number::WithNumber;
use crate::models::config::ModelConfig;
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::nn::{
    dropped, run, run_batches, stream, Block, Cache, Context, Linear, Norm, Places, RopeTables,
    Rows, Sites, Stay, Table, Through, Weight, Weights,
};
use crate::pretrained;

/// A decoder-only language model: embeddings, blocks of attention and MLP, a head.
///
/// Variables are named as in transformers: `model.layers.0.input_layernorm.weight`, … with a head,
/// `layers.0.input_layernorm.weight`, … without. Those that the `VarStore` holds already are used, so that it can be
/// filled from a checkpoint first.
///
/// ```no_run
/// use ln_tuning::models::{Decoder, Model};
/// use ln_tuning::{LnTuningConfig, LnTuningModel};
/// let device = ln_tuning::device::best_device();
/// let (vs, model) = Decoder::from_pretrained("Llama-3.2-1B", device, None)?;
/// let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[doc(alias = "AutoModelForCausalLM")]
#[derive(Debug)]
pub struct Decoder {
    pub(super) config: DecoderConfig,
    pub(super) embed: Weight,
    positions: Option<Table>,
    embed_norm: Option<Norm>,
    /// Into and out of the blocks' width, where that of the embedding is another.
    projections: Option<[Linear; 2]>,
    pub(super) blocks: Vec<Block>,
    norm: Option<Norm>,
    pub(super) head: Head,
    /// The place where the head's matrix comes when it is needed.
    pub(super) head_stay: Option<Stay>,
    pub(super) ropes: Vec<RopeTables>,
    pub(super) sites: Arc<Sites>,
}

const TAKEN: [&str; 3] = ["input_ids", "attention_mask", "documents"];

impl Model for Decoder {
    type Config = DecoderConfig;

    fn build(weights: &Weights, config: &DecoderConfig) -> Result<Self> {
        let base = match config.head() {
            pretrained::Head::None => weights.clone(),
            _ => weights.at(config.names.base),
        };
        Self::build_at(&base, weights, config)
    }

    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn kind(&self) -> Kind {
        self.embed.kind().unwrap_or(Kind::Float)
    }

    fn hidden_states_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        Ok(self.hidden_states_of(&[inputs], tape)?.swap_remove(0))
    }

    fn logits_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let hidden = self.hidden_states_with(inputs, tape)?;
        let _rows = inputs.enter();
        self.head_stay.iter().try_for_each(Stay::enter)?;
        self.head.forward(&hidden, &self.config, &inputs)
    }
}

impl Decoder {
    /// The model of the variables below `base`, and its head of those below `head`: within another model these are no
    /// neighbours.
    pub(in crate::models) fn build_at(
        base: &Weights,
        head: &Weights,
        config: &DecoderConfig,
    ) -> Result<Self> {
        let init = Init::Randn { mean: 0., stdev: config.initializer_range };
        let (size, width) = (config.hidden_size, config.embed_size);
        let names = &config.names;
        let embed = base.at(names.embed).rows("weight", [config.vocab_size, width], init)?;
        let head = Head::build(head, config, &embed)?;
        let positions = match config.positions {
            Positions::Learned { offset, .. } => {
                let rows = config.max_positions + offset;
                Some(Table::build(&base.at(names.positions), "weight", [rows, size], init)?)
            }
            _ => None,
        };
        let beside = names.embed.rsplit_once('.').map_or("", |(module, _)| module);
        let projection = |name: &str, from: i64, to: i64| {
            Linear::build(&base.at(beside).at(name), (from, to), false, init)
        };
        let norm = |name: &str| {
            let there = (!name.is_empty()).then(|| base.at(name));
            let build = |w| Norm::build(&w, config.norm, size, config.norm_eps);
            there.map(build).transpose()
        };
        let side_by_side = config.positions == (Positions::Rope { side_by_side: true });
        let layers = base.at(names.layers);
        let blocks = (0..config.layers as usize).map(|at| block(&layers.at(at), config, at));
        let mut blocks = blocks.collect::<Result<Vec<_>>>()?;
        let head_stay = stream(&mut blocks, head.matrix(), base)?;
        Ok(Decoder {
            positions,
            embed_norm: norm(names.embed_norm)?,
            projections: match width == size {
                true => None,
                false => Some([
                    projection("project_in", width, size)?,
                    projection("project_out", size, width)?,
                ]),
            },
            blocks,
            norm: norm(names.norm)?,
            head,
            head_stay,
            ropes: config.ropes.iter().map(|rope| RopeTables::new(rope, side_by_side)).collect(),
            embed,
            sites: base.sites(),
            config: config.clone(),
        })
    }

    /// The device of the embeddings, which is the model's.
    pub(in crate::models) fn device(&self) -> Device {
        self.embed.variable().device()
    }

    /// True if the matrices of the blocks come when they are needed.
    pub fn is_streamed(&self) -> bool {
        self.stay().is_some()
    }

    fn stay(&self) -> Option<&Stay> {
        self.blocks.iter().find_map(|block| block.stay.as_ref())
    }

    /// The hidden states below the head of several batches, which go through each block together.
    pub(super) fn hidden_states_of<'m>(
        &'m self,
        batches: &[Inputs],
        tape: &mut Tape<'m>,
    ) -> Result<Vec<Tensor>> {
        let (mut hidden, mut contexts) = (Vec::new(), Vec::new());
        let mut rows = Vec::new();
        for inputs in batches {
            inputs.check(self.model_type(), &TAKEN)?;
            let own = inputs.named_rows(&self.sites)?;
            let _rows = Rows::enter(own.clone());
            let (ids, tokens) = (inputs.needed_ids()?, inputs.tokens()?);
            let places = Places {
                start: 0,
                length: ids.size2()?.1,
                device: ids.device(),
                tokens: tokens.as_ref(),
                documents: inputs.documents,
                blocks: inputs.blocks,
            };
            let by_tokens =
                matches!(self.config.positions, Positions::Learned { by_tokens: true, .. });
            let positions = match inputs.positions {
                Some(positions) => positions.shallow_clone(),
                None => places.positions(by_tokens)?,
            };
            let embedded = match inputs.inputs_embeds {
                Some(embeds) => embeds.shallow_clone(),
                None => self.embedded(ids)?,
            };
            let (begun, mut context) =
                self.begun(embedded, &places, &positions, None, inputs.train)?;
            context.added = inputs.added.iter().map(Tensor::shallow_clone).collect();
            hidden.push(begun);
            contexts.push(Rc::new(context));
            rows.push(own);
        }
        let hidden = run_batches(&self.blocks, hidden, &contexts, self.norm.as_ref(), tape)?;
        let finished = hidden.into_iter().zip(rows).map(|(hidden, own)| {
            let _rows = Rows::enter(own);
            self.projected(hidden)
        });
        finished.collect()
    }

    /// Embeddings `[batch, length, size]` at these places and positions to the hidden states below the head, with a
    /// cache. `ahead` has the masks.
    pub(super) fn continued(
        &self,
        embedded: Tensor,
        places: &Places,
        positions: &Tensor,
        added: &[Tensor],
        ahead: Option<&mut Ahead>,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        let (hidden, mut context) = self.begun(embedded, places, positions, ahead, false)?;
        context.added = added.iter().map(Tensor::shallow_clone).collect();
        let mut through = Through::Cache(cache);
        let (context, last) = (Rc::new(context), self.norm.as_ref());
        self.projected(run(&self.blocks, hidden, &context, None, 0., last, &mut through)?)
    }

    /// The embeddings of ids, `[batch, length, size]`. A model of images and texts puts images into some places.
    pub(in crate::models) fn embedded(&self, ids: &Tensor) -> Result<Tensor> {
        let embedded = self.embed.lookup(ids, -1)?;
        self.stay().map_or(Ok(()), |stay| stay.give_back(self.embed.variable()))?;
        if self.config.scales_tokens {
            return self.scaled(embedded);
        }
        Ok(embedded)
    }

    fn scaled(&self, embedded: Tensor) -> Result<Tensor> {
        if self.config.embedding_scale == 1. {
            return Ok(embedded);
        }
        // Rounded to the model's kind first, as the reference does.
        let factor = Tensor::from(self.config.embedding_scale).f_to_kind(embedded.f_kind()?)?;
        Ok(embedded.f_mul_number(factor.f_double_value(&[])?)?)
    }

    /// The input of the first block, and the context of all of them.
    fn begun(
        &self,
        mut hidden: Tensor,
        places: &Places,
        positions: &Tensor,
        ahead: Option<&mut Ahead>,
        train: bool,
    ) -> Result<(Tensor, Context)> {
        let config = &self.config;
        if !config.scales_tokens {
            hidden = self.scaled(hidden)?;
        }
        if let Some([into, _]) = &self.projections {
            hidden = into.forward(&hidden)?;
        }
        if let (Some(table), Positions::Learned { offset, .. }) =
            (&self.positions, config.positions)
        {
            if places.total() > config.max_positions {
                refuse!(
                    InvalidArgument,
                    "{} places, and the model has {} positions",
                    places.total(),
                    config.max_positions
                );
            }
            let rows = positions.f_add_number(offset)?;
            hidden = hidden.f_add(&table.lookup(&rows, hidden.size3()?.0, -1)?)?;
        }
        if let Some(norm) = &self.embed_norm {
            hidden = norm.forward(&hidden)?;
        }
        let hidden = dropped(hidden, config.embedding_dropout, train)?;
        let kind = hidden.f_kind()?;
        let masks = match ahead {
            Some(ahead) => ahead.masks(places.start, kind)?,
            None => masks(config, places, positions, &config.windows, kind)?,
        };
        let context = context(&self.ropes, places, positions, masks, kind, train)?;
        Ok((hidden, context))
    }

    /// The hidden states in the size that the head reads.
    fn projected(&self, hidden: Tensor) -> Result<Tensor> {
        match &self.projections {
            Some([_, out]) => out.forward(&hidden),
            None => Ok(hidden),
        }
    }
}
