//! The encoder or the decoder of an encoder-decoder.

use tch::nn::Init;
use tch::{Device, Kind, Tensor};

use super::config::{Family, PositionsShape, Seq2SeqConfig, StackShape};
use super::distance::distance_bias;
use super::norm::Norm;
use crate::error::{Error, ErrorKind, Result};
use crate::models::activation::Activation;
use crate::models::multi_head::{KeysValues, Mask, MultiHeadAttention};
use crate::models::parts::Linear;
use crate::models::weights::Weights;

/// BART's table of positions starts here.
const OFFSET: i64 = 2;

#[derive(Debug)]
pub(super) struct Stack {
    embed: Tensor,
    /// This row of the embeddings gets no gradient from them.
    padding: i64,
    embedding_scale: f64,
    positions: Positions,
    first_norm: Option<Norm>,
    layers: Vec<Layer>,
    last_norm: Option<Norm>,
    family: Family,
    causal: bool,
    dropout: f64,
    layerdrop: f64,
}

/// What a decoder looks at: the encoder's output, and where in it there are tokens.
pub(super) struct Source<'a> {
    pub(super) hidden: &'a Tensor,
    pub(super) tokens: Option<&'a Tensor>,
}

/// What a decoder has seen so far, per layer.
#[derive(Default)]
pub(super) struct Cache {
    length: i64,
    layers: Vec<CachedLayer>,
}

#[derive(Default)]
struct CachedLayer {
    own: Option<KeysValues>,
    source: Option<KeysValues>,
}

#[derive(Debug)]
enum Positions {
    Learned(Tensor),
    Relative { table: Tensor, max_distance: i64 },
}

#[derive(Debug)]
struct Layer {
    own: (MultiHeadAttention, Norm),
    source: Option<(MultiHeadAttention, Norm)>,
    mlp: (Mlp, Norm),
}

#[derive(Debug)]
struct Mlp {
    inner: Linear,
    gate: Option<Linear>,
    outer: Linear,
    activation: Activation,
    dropout: f64,
}

/// Builds the parts of one stack.
struct Builder<'a> {
    weights: &'a Weights<'a>,
    config: &'a Seq2SeqConfig,
    shape: StackShape,
    /// `encoder` or `decoder`, with what stands before.
    name: String,
}

impl Stack {
    /// `decoder` or encoder, with these embeddings.
    pub(super) fn build(
        weights: &Weights,
        config: &Seq2SeqConfig,
        decoder: bool,
        embed: Tensor,
    ) -> Result<Self> {
        let side = if decoder { "decoder" } else { "encoder" };
        let bart = config.family == Family::Bart;
        let builder = Builder {
            weights,
            config,
            shape: if decoder { config.decoder } else { config.encoder },
            name: if bart { format!("model.{side}") } else { side.to_owned() },
        };
        let layers = (0..builder.shape.layers).map(|layer| builder.layer(layer, decoder));
        let outer_norm = |name: &str, there: bool| {
            there.then(|| builder.norm(&format!("{}.{name}", builder.name))).transpose()
        };
        Ok(Stack {
            embed,
            padding: config.pad_token_id.filter(|_| bart).unwrap_or(-1),
            embedding_scale: config.embedding_scale,
            positions: builder.positions()?,
            first_norm: outer_norm("layernorm_embedding", bart)?,
            layers: layers.collect::<Result<_>>()?,
            last_norm: outer_norm("final_layer_norm", !bart)?,
            family: config.family,
            causal: decoder,
            dropout: config.dropout,
            layerdrop: builder.shape.layerdrop,
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.embed.kind()
    }

    /// How many positions there are, if that is limited.
    pub(super) fn max_positions(&self) -> Option<i64> {
        match &self.positions {
            Positions::Learned(table) => Some(table.size()[0] - OFFSET),
            Positions::Relative { .. } => None,
        }
    }

    /// Token ids `[batch, length]` to hidden states. With a cache the ids stand behind those that were given before.
    pub(super) fn forward(
        &self,
        ids: &Tensor,
        tokens: Option<&Tensor>,
        source: Option<&Source>,
        mut cache: Option<&mut Cache>,
        train: bool,
    ) -> Result<Tensor> {
        let (_, length) = ids.size2()?;
        let past = cache.as_ref().map_or(0, |cache| cache.length);
        let keys = past + length;
        let mut hidden = Tensor::f_embedding(&self.embed, ids, self.padding, false, false)?;
        if self.embedding_scale != 1. {
            hidden = hidden.f_mul_scalar(self.embedding_scale)?;
        }
        let place = (hidden.f_kind()?, hidden.device());
        let bias = match &self.positions {
            Positions::Learned(table) => {
                if keys > table.size()[0] - OFFSET {
                    return Err(Error::new(
                        ErrorKind::InvalidArgument,
                        format!(
                            "the sequence has {keys} tokens, 'max_position_embeddings' allows {}",
                            table.size()[0] - OFFSET
                        ),
                    ));
                }
                hidden = hidden.f_add(&table.f_narrow(0, OFFSET + past, length)?)?;
                None
            }
            Positions::Relative { table, max_distance } => {
                Some(distance_bias(table, *max_distance, (length, keys), !self.causal)?)
            }
        };
        let mask = Mask::new((length, keys), self.causal, tokens, bias, place)?;
        let source_mask = match source {
            Some(source) => {
                let lengths = (length, source.hidden.size()[1]);
                Mask::new(lengths, false, source.tokens, None, place)?
            }
            None => Mask::Everything,
        };
        if let Some(norm) = &self.first_norm {
            hidden = norm.forward(&hidden)?;
        }
        hidden = hidden.f_dropout(self.dropout, train)?;
        if let Some(cache) = cache.as_mut() {
            cache.length = keys;
            cache.layers.resize_with(self.layers.len(), Default::default);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            if train && self.layerdrop > 0. {
                let drawn = Tensor::f_rand([1], (Kind::Float, Device::Cpu))?;
                if drawn.f_double_value(&[0])? < self.layerdrop {
                    continue;
                }
            }
            let mut unused = CachedLayer::default();
            let cache = match cache.as_mut() {
                Some(cache) => &mut cache.layers[index],
                None => &mut unused,
            };
            let (attention, norm) = &layer.own;
            hidden = self.residual(&hidden, norm, train, |hidden| {
                let (mut keys, mut values) = attention.keys_values(hidden)?;
                if let Some((earlier_keys, earlier_values)) = cache.own.take() {
                    keys = Tensor::f_cat(&[earlier_keys, keys], 2)?;
                    values = Tensor::f_cat(&[earlier_values, values], 2)?;
                }
                let out = attention.forward(hidden, cache.own.insert((keys, values)), &mask, train);
                out
            })?;
            if let (Some((attention, norm)), Some(source)) = (&layer.source, source) {
                hidden = self.residual(&hidden, norm, train, |hidden| {
                    let seen = match cache.source.take() {
                        Some(seen) => seen,
                        None => attention.keys_values(source.hidden)?,
                    };
                    attention.forward(hidden, cache.source.insert(seen), &source_mask, train)
                })?;
            }
            let (mlp, norm) = &layer.mlp;
            hidden = self.residual(&hidden, norm, train, |hidden| mlp.forward(hidden, train))?;
            if self.family == Family::Bart && !self.causal {
                hidden = clamped(hidden)?;
            }
        }
        match &self.last_norm {
            Some(norm) => Ok(norm.forward(&hidden)?.f_dropout(self.dropout, train)?),
            None => Ok(hidden),
        }
    }

    /// The hidden states and what `part` makes of them, added; the norm stands before or behind.
    fn residual(
        &self,
        hidden: &Tensor,
        norm: &Norm,
        train: bool,
        part: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match self.family {
            Family::T5 => {
                let out = part(&norm.forward(hidden)?)?.f_dropout(self.dropout, train)?;
                clamped(hidden.f_add(&out)?)
            }
            Family::Bart => {
                let out = part(hidden)?.f_dropout(self.dropout, train)?;
                norm.forward(&hidden.f_add(&out)?)
            }
        }
    }
}

impl Builder<'_> {
    fn linear(&self, name: &str, sizes: (i64, i64), stdev: f64) -> Result<Linear> {
        let init = Init::Randn { mean: 0., stdev };
        Linear::build(self.weights, name, sizes, self.config.family == Family::Bart, init)
    }

    fn norm(&self, name: &str) -> Result<Norm> {
        Norm::build(self.weights, self.config, name)
    }

    fn positions(&self) -> Result<Positions> {
        let size = self.config.hidden_size;
        match self.config.positions {
            PositionsShape::Learned(count) => {
                let name = format!("{}.embed_positions.weight", self.name);
                let init = Init::Randn { mean: 0., stdev: self.config.init };
                Ok(Positions::Learned(self.weights.tensor(&name, &[count + OFFSET, size], init)?))
            }
            // The first layer's, used by all.
            PositionsShape::Relative { buckets, max_distance } => {
                let name = "block.0.layer.0.SelfAttention.relative_attention_bias.weight";
                let name = format!("{}.{name}", self.name);
                let stdev = self.config.init * (size as f64).powf(-0.5);
                let init = Init::Randn { mean: 0., stdev };
                let table = self.weights.tensor(&name, &[buckets, self.shape.heads], init)?;
                Ok(Positions::Relative { table, max_distance })
            }
        }
    }

    fn layer(&self, layer: i64, decoder: bool) -> Result<Layer> {
        let bart = self.config.family == Family::Bart;
        let layer = match bart {
            true => format!("{}.layers.{layer}", self.name),
            false => format!("{}.block.{layer}.layer", self.name),
        };
        let part = |bart_name: &str, t5_name: &str| match bart {
            true => format!("{layer}.{bart_name}"),
            false => format!("{layer}.{t5_name}"),
        };
        let own = (
            self.attention(&part("self_attn", "0.SelfAttention"))?,
            self.norm(&part("self_attn_layer_norm", "0.layer_norm"))?,
        );
        let source = match decoder {
            true => Some((
                self.attention(&part("encoder_attn", "1.EncDecAttention"))?,
                self.norm(&part("encoder_attn_layer_norm", "1.layer_norm"))?,
            )),
            false => None,
        };
        let last = if decoder { 2 } else { 1 };
        let mlp = (
            self.mlp(&layer, last)?,
            self.norm(&part("final_layer_norm", &format!("{last}.layer_norm")))?,
        );
        Ok(Layer { own, source, mlp })
    }

    fn attention(&self, name: &str) -> Result<MultiHeadAttention> {
        let (config, shape) = (self.config, self.shape);
        let (size, wide) = (config.hidden_size, shape.heads * shape.head_dim);
        let (init, head_dim) = (config.init, shape.head_dim as f64);
        let names = match config.family {
            Family::T5 => ["q", "k", "v", "o"],
            Family::Bart => ["q_proj", "k_proj", "v_proj", "out_proj"],
        };
        // T5 does not scale its scores, but its initial queries.
        let narrow = init * (size as f64).powf(-0.5);
        let (stdevs, scale) = match config.family {
            Family::T5 => {
                let queries = narrow * head_dim.powf(-0.5);
                ([queries, narrow, narrow, init * (wide as f64).powf(-0.5)], 1.)
            }
            Family::Bart => ([init; 4], head_dim.powf(-0.5)),
        };
        let linear = |index: usize, sizes: (i64, i64)| {
            self.linear(&format!("{name}.{}", names[index]), sizes, stdevs[index])
        };
        Ok(MultiHeadAttention {
            q: linear(0, (size, wide))?,
            k: linear(1, (size, wide))?,
            v: linear(2, (size, wide))?,
            o: linear(3, (wide, size))?,
            heads: shape.heads,
            scale,
            dropout: config.attention_dropout,
        })
    }

    fn mlp(&self, layer: &str, last: i64) -> Result<Mlp> {
        let config = self.config;
        let (size, inner) = (config.hidden_size, self.shape.inner);
        let dense = format!("{last}.DenseReluDense");
        let (name, stdevs) = match config.family {
            Family::T5 => (
                ["wi", "wi_0", "wi_1", "wo"].map(|name| format!("{layer}.{dense}.{name}")),
                [size, inner].map(|from| config.init * (from as f64).powf(-0.5)),
            ),
            Family::Bart => {
                (["fc1", "fc1", "", "fc2"].map(|name| format!("{layer}.{name}")), [config.init; 2])
            }
        };
        let wide = |name: &str| self.linear(name, (size, inner), stdevs[0]);
        Ok(Mlp {
            inner: wide(&name[usize::from(config.gated)])?,
            gate: if config.gated { Some(wide(&name[2])?) } else { None },
            outer: self.linear(&name[3], (inner, size), stdevs[1])?,
            activation: config.activation,
            dropout: config.activation_dropout,
        })
    }
}

impl Mlp {
    fn forward(&self, hidden: &Tensor, train: bool) -> Result<Tensor> {
        let mut inner = self.activation.apply(&self.inner.forward(hidden)?)?;
        if let Some(gate) = &self.gate {
            inner = inner.f_mul(&gate.forward(hidden)?)?;
        }
        // T5's outer layer stays in f32 where the model is in f16.
        let inner = inner.f_dropout(self.dropout, train)?;
        self.outer.forward(&inner.f_to_kind(self.outer.weight.f_kind()?)?)
    }
}

/// Keeps f16 from infinity.
fn clamped(x: Tensor) -> Result<Tensor> {
    if x.f_kind()? != Kind::Half {
        return Ok(x);
    }
    let place = (Kind::Half, x.device());
    let (most, less) =
        (Tensor::f_scalar_tensor(65504., place)?, Tensor::f_scalar_tensor(64504., place)?);
    let limit = most.f_where_self(&x.f_isfinite()?.f_all()?, &less)?;
    Ok(x.f_clamp_tensor(Some(&limit.f_neg()?), Some(&limit))?)
}
