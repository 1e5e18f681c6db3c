//! What all layers share while a batch passes through: positions, angles, masks.

use tch::{Device, Kind, Tensor};

use super::config::DecoderConfig;
use super::family::Positions;
use super::inputs::Inputs;
use crate::error::Result;

/// Computed once per pass.
#[derive(Debug)]
pub(super) struct Pass {
    /// Per rope, cosines and sines.
    pub(super) angles: Vec<(Tensor, Tensor)>,
    /// Per window that occurs: what is added to the scores, or true where a position may look; `None`: see `causal`.
    masks: Vec<(Option<i64>, Option<Tensor>)>,
    /// Without a mask, whether a position sees those before it only, rather than all.
    pub(super) causal: bool,
    pub(super) train: bool,
}

/// The places of a batch among those that have passed before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span<'a> {
    pub(super) start: i64,
    pub(super) length: i64,
    pub(super) device: Device,
    /// `[batch, start + length]`, true where there is a token; `None`: everywhere.
    pub(super) tokens: Option<&'a Tensor>,
    /// Whether padding counts as a position.
    pub(super) by_tokens: bool,
}

impl Pass {
    pub(super) fn new(
        config: &DecoderConfig,
        inputs: &Inputs,
        span: Span,
        positions: &Tensor,
        kind: Kind,
    ) -> Result<Self> {
        let side_by_side = config.positions == (Positions::Rope { side_by_side: true });
        let turn = |rope: &super::rope::Rope| {
            rope.tables(config.rotary_dim, positions, side_by_side, kind)
        };
        let mut masks: Vec<(Option<i64>, Option<Tensor>)> = Vec::new();
        let total = span.start + span.length;
        for window in &config.windows {
            if masks.iter().all(|(known, _)| known != window) {
                let reach = window.filter(|window| *window < total);
                let mask = match config.positions {
                    Positions::Alibi { falcon } => {
                        let bias = alibi(config, &span, positions, falcon, kind)?;
                        let hidden = Tensor::f_full([], f64::NEG_INFINITY, (kind, span.device))?;
                        let seen = seen(inputs, &span, reach)?;
                        Some(bias.f_where_self(&seen, &hidden)?)
                    }
                    _ if inputs.documents.is_none() && span.tokens.is_none() && reach.is_none() => {
                        match span.start == 0 || span.length == 1 {
                            true => None,
                            false => Some(seen(inputs, &span, None)?),
                        }
                    }
                    _ => Some(seen(inputs, &span, reach)?),
                };
                masks.push((*window, mask));
            }
        }
        Ok(Pass {
            angles: config.ropes.iter().map(turn).collect::<Result<_>>()?,
            masks,
            causal: span.start == 0,
            train: inputs.train,
        })
    }

    pub(super) fn mask(&self, window: Option<i64>) -> Option<&Tensor> {
        self.masks.iter().find(|(known, _)| *known == window).and_then(|(_, mask)| mask.as_ref())
    }
}

impl Span<'_> {
    /// `[length]`, or `[batch, length]` where rows differ.
    pub(super) fn positions(&self, documents: Option<&Tensor>) -> Result<Tensor> {
        let places = Tensor::f_arange_start(
            self.start,
            self.start + self.length,
            (Kind::Int64, self.device),
        )?;
        if let Some(documents) = documents {
            let before = documents.f_narrow(1, 0, self.length - 1)?;
            let starts = documents.f_narrow(1, 1, self.length - 1)?.f_ne_tensor(&before)?;
            let starts = starts.f_constant_pad_nd([1, 0])?;
            let starts = places.f_mul(&starts.f_to_kind(Kind::Int64)?)?.f_cummax(1)?.0;
            return Ok(places.f_sub(&starts)?);
        }
        match self.tokens {
            Some(tokens) if self.by_tokens => {
                Ok(counted(tokens)?.f_narrow(1, self.start, self.length)?)
            }
            _ => Ok(places),
        }
    }
}

/// The number of tokens before each place, as transformers counts them.
fn counted(tokens: &Tensor) -> Result<Tensor> {
    Ok(tokens.f_cumsum(1, Kind::Int64)?.f_sub_scalar(1)?.f_clamp_min(0)?)
}

/// `[length, total]` or `[batch, 1, length, total]`, true where a position may look.
fn seen(inputs: &Inputs, span: &Span, window: Option<i64>) -> Result<Tensor> {
    let options = (Kind::Int64, span.device);
    let keys = Tensor::f_arange(span.start + span.length, options)?;
    let queries = keys.f_narrow(0, span.start, span.length)?.f_unsqueeze(1)?;
    let mut seen = keys.f_le_tensor(&queries)?;
    if let Some(window) = window {
        seen = seen.f_logical_and(&keys.f_gt_tensor(&queries.f_sub_scalar(window)?)?)?;
    }
    if let Some(tokens) = span.tokens {
        let shown = seen.f_logical_and(&tokens.f_unsqueeze(1)?.f_unsqueeze(1)?)?;
        // Padding looks at itself: a row without any place to look at is not a number.
        seen = shown.f_logical_or(&keys.f_eq_tensor(&queries)?)?;
    }
    if let Some(documents) = inputs.documents {
        let same = documents.f_unsqueeze(2)?.f_eq_tensor(&documents.f_unsqueeze(1)?)?;
        seen = seen.f_logical_and(&same.f_unsqueeze(1)?)?;
    }
    Ok(seen)
}

/// `[batch or 1, heads, 1, total]`: a slope per head times the position.
fn alibi(
    config: &DecoderConfig,
    span: &Span,
    positions: &Tensor,
    falcon: bool,
    kind: Kind,
) -> Result<Tensor> {
    let heads = config.heads as usize;
    let near = 1 << heads.ilog2();
    let slope = |count: usize, i: usize| 2_f64.powf(-8. * i as f64 / count as f64) as f32;
    let slopes = (1..=near).map(|i| slope(near, i));
    let more = (0..heads - near).map(|i| slope(2 * near, 2 * i + 1));
    let slopes: Vec<f32> = slopes.chain(more).collect();
    let slopes = Tensor::f_from_slice(&slopes)?.f_to_device(span.device)?.f_view([-1, 1])?;
    let positions = match span.tokens {
        Some(tokens) => counted(tokens)?.f_mul(tokens)?,
        None if positions.dim() == 2 => positions.shallow_clone(),
        None => Tensor::f_arange(span.start + span.length, (Kind::Int64, span.device))?,
    };
    let positions = positions.f_view([-1, 1, span.start + span.length])?;
    let bias = match falcon {
        true => {
            let rounded = slopes.f_to_kind(Kind::BFloat16)?.f_mul(&positions)?.f_to_kind(kind)?;
            rounded.f_div_scalar((config.head_dim as f64).sqrt())?
        }
        false => slopes.f_mul(&positions)?.f_to_kind(kind)?,
    };
    Ok(bias.f_unsqueeze(2)?)
}
