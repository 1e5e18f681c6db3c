//! The encoder or the decoder of an encoder-decoder.

use std::rc::Rc;

use tch::nn::Init;
use tch::{Kind, Tensor};

use super::config::{Family, PositionsShape, Seq2SeqConfig};
use super::distance::distance_bias;
use super::layer::Builder;
use crate::error::{refuse, Result};
use crate::kernels::number::WithNumber;
use crate::models::nn::{
    dropped, run, stream, Block, Context, Mask, Norm, Places, Table, Through, Tied, Weights,
};

/// BART's table of positions starts here.
const OFFSET: i64 = 2;

#[derive(Debug)]
pub(super) struct Stack {
    embed: Tied,
    /// This row of the embeddings gets no gradient from them.
    padding: i64,
    embedding_scale: f64,
    positions: Positions,
    first_norm: Option<Norm>,
    blocks: Vec<Block>,
    last_norm: Option<Norm>,
    causal: bool,
    dropout: f64,
    layerdrop: f64,
}

/// The sequence that a decoder looks at: the encoder's output, and the mask of its tokens.
pub(super) struct Source<'a> {
    hidden: &'a Tensor,
    mask: Mask,
    /// In generation, the mask of the decoder's last place, and the number of its places.
    last: Option<(Mask, i64)>,
}

impl<'a> Source<'a> {
    pub(super) fn new(hidden: &'a Tensor, tokens: Option<&Tensor>) -> Result<Self> {
        let mask = Mask::tokens(tokens)?.ready(hidden.f_kind()?, (1, 1))?;
        Ok(Source { hidden, mask, last: None })
    }

    /// For a decoder that goes through `total` places one by one. All have a part of the last one's biases.
    pub(super) fn for_each_of(self, total: i64, decoder: &Stack) -> Result<Self> {
        let Positions::Relative { table, max_distance } = &decoder.positions else {
            return Ok(self);
        };
        let bias = |table: &Tensor| distance_bias(table, *max_distance, (1, total), false);
        let bias = biases(table, self.hidden, bias)?;
        let last = Mask::Added(bias).ready(self.hidden.f_kind()?, (1, 1))?;
        Ok(Source { last: Some((last, total)), ..self })
    }
}

#[derive(Debug)]
enum Positions {
    Learned(Table),
    Relative { table: Table, max_distance: i64 },
}

impl Stack {
    /// `decoder` or encoder, with these embeddings.
    pub(super) fn build(
        weights: &Weights,
        config: &Seq2SeqConfig,
        decoder: bool,
        embed: Tied,
    ) -> Result<Self> {
        let bart = config.family == Family::Bart;
        let base = if bart { weights.at("model") } else { weights.clone() };
        let base = base.at(if decoder { "decoder" } else { "encoder" });
        let builder =
            Builder { config, shape: if decoder { config.decoder } else { config.encoder } };
        let layers = base.at(if bart { "layers" } else { "block" });
        let blocks = (0..builder.shape.layers).map(|at| builder.block(&layers.at(at), decoder));
        let mut blocks = blocks.collect::<Result<Vec<_>>>()?;
        stream(&mut blocks, None, weights)?;
        let norm =
            |name: &str, there: bool| there.then(|| builder.norm(&base.at(name))).transpose();
        Ok(Stack {
            embed,
            padding: config.pad_token_id.filter(|_| bart).unwrap_or(-1),
            embedding_scale: config.embedding_scale,
            positions: Positions::build(&base, config, builder.shape.heads)?,
            first_norm: norm("layernorm_embedding", bart)?,
            blocks,
            last_norm: norm("final_layer_norm", !bart)?,
            causal: decoder,
            dropout: config.dropout,
            layerdrop: builder.shape.layerdrop,
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.embed.get().kind().unwrap_or(Kind::Float)
    }

    /// The number of blocks.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// The number of positions, if that is limited.
    pub(super) fn max_positions(&self) -> Option<i64> {
        match &self.positions {
            Positions::Learned(table) => Some(table.count() - OFFSET),
            Positions::Relative { .. } => None,
        }
    }

    /// Token ids `[batch, length]` to hidden states. With a cache the ids stand behind those that were given before.
    pub(super) fn forward<'m>(
        &'m self,
        ids: &Tensor,
        tokens: Option<&Tensor>,
        source: Option<&Source>,
        train: bool,
        mut through: Through<'_, 'm>,
    ) -> Result<Tensor> {
        let start = match &through {
            Through::Cache(cache) => cache.length,
            Through::Tape(_) => 0,
        };
        let (length, device) = (ids.size2()?.1, ids.device());
        let places = Places { start, length, device, tokens, documents: None, blocks: None };
        let mut hidden = self.embed.lookup(ids, self.padding)?;
        if self.embedding_scale != 1. {
            hidden = hidden.f_mul_number(self.embedding_scale)?;
        }
        let mut mask = match self.causal {
            true => Mask::causal(&places, None)?,
            false => Mask::tokens(tokens)?,
        };
        match &self.positions {
            Positions::Learned(table) => {
                let (total, most) = (places.total(), table.count() - OFFSET);
                if total > most {
                    refuse!(
                        InvalidArgument,
                        "the sequence has {total} tokens, 'max_position_embeddings' allows {most}"
                    );
                }
                hidden = hidden.f_add(&table.part(OFFSET + start, length, hidden.size3()?.0)?)?;
            }
            Positions::Relative { table, max_distance } => {
                let total = places.total();
                mask = match source.and_then(|source| source.last.as_ref()) {
                    Some((last, all)) => last.keys(all - total, total)?,
                    None => {
                        let (lengths, both) = ((length, total), !self.causal);
                        let bias =
                            |table: &Tensor| distance_bias(table, *max_distance, lengths, both);
                        mask.with_bias(biases(table, &hidden, bias)?, &places)?
                    }
                };
            }
        }
        if let Some(norm) = &self.first_norm {
            hidden = norm.forward(&hidden)?;
        }
        let hidden = dropped(hidden, self.dropout, train)?;
        let mut context = Context::new(train, hidden.f_kind()?, mask)?;
        if let Some(source) = source {
            context.across = source.mask.shallow_clone();
        }
        let (context, source) = (Rc::new(context), source.map(|source| source.hidden));
        let (drop, last) = (self.layerdrop, self.last_norm.as_ref());
        let hidden = run(&self.blocks, hidden, &context, source, drop, last, &mut through)?;
        if last.is_none() {
            return Ok(hidden);
        }
        dropped(hidden, self.dropout, train)
    }
}

/// The biases of all rows of `x`, `[1, heads, queries, keys]`, or of each: `[batch, heads, queries, keys]`.
fn biases(table: &Table, x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let all = table.of_each(x, f)?;
    // Of one row, the first dimension is there already.
    Ok(if all.dim() > 4 { all.f_squeeze_dim(1)? } else { all })
}

impl Positions {
    /// Of the stack below `weights`.
    fn build(weights: &Weights, config: &Seq2SeqConfig, heads: i64) -> Result<Self> {
        let size = config.hidden_size;
        match config.positions {
            PositionsShape::Learned(count) => {
                let init = Init::Randn { mean: 0., stdev: config.init };
                let table = weights.at("embed_positions");
                let shape = [count + OFFSET, size];
                Ok(Positions::Learned(Table::build(&table, "weight", shape, init)?))
            }
            // The first block's, used by all.
            PositionsShape::Relative { buckets, max_distance } => {
                let name = "block.0.layer.0.SelfAttention.relative_attention_bias.weight";
                let stdev = config.init * (size as f64).powf(-0.5);
                let init = Init::Randn { mean: 0., stdev };
                let table = Table::build(weights, name, [buckets, heads], init)?;
                Ok(Positions::Relative { table, max_distance })
            }
        }
    }
}
