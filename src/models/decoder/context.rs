//! The context that the blocks of a decoder share in one pass: angles, masks, the bias of ALiBi.

use tch::{Kind, Tensor};

use super::config::DecoderConfig;
use super::form::Positions;
use crate::device::trace::sent_numbers;
use crate::error::Result;
use crate::kernels::number::{self, WithNumber};
use crate::models::nn::{counted, Context, Mask, Places, RopeTables};

/// A mask per window.
pub(super) type Masks = Vec<(Option<i64>, Mask)>;

/// `ropes` are the model's, `positions` those of the places; `kind` is that of the hidden states.
pub(super) fn context(
    ropes: &[RopeTables],
    places: &Places,
    positions: &Tensor,
    masks: Masks,
    kind: Kind,
    train: bool,
) -> Result<Context> {
    let angles = ropes.iter().map(|rope| rope.at(places, positions, kind));
    let angles = angles.collect::<Result<_>>()?;
    Ok(Context::with_windows(train, masks, angles))
}

/// The masks of the places for each of these windows that occurs; `positions` are those of all places.
pub(super) fn masks(
    config: &DecoderConfig,
    places: &Places,
    positions: &Tensor,
    windows: &[Option<i64>],
    kind: Kind,
) -> Result<Masks> {
    let mut masks: Masks = Vec::new();
    for window in windows {
        if masks.iter().all(|(known, _)| known != window) {
            let mask = Mask::causal(places, *window)?;
            let mask = match config.positions {
                Positions::Alibi { falcon } => {
                    mask.with_bias(alibi(config, places, positions, falcon, kind)?, places)?
                }
                _ => mask,
            };
            masks.push((*window, mask.ready(kind, (config.heads, config.kv_heads))?));
        }
    }
    Ok(masks)
}

/// `[batch or 1, heads, 1, total]`: a slope per head times the position.
fn alibi(
    config: &DecoderConfig,
    places: &Places,
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
    let slopes = sent_numbers(&slopes, places.device)?.f_view([-1, 1])?;
    let positions = match places.tokens {
        Some(tokens) => counted(tokens)?.f_mul(tokens)?,
        None if positions.dim() == 2 => positions.shallow_clone(),
        None => number::arange(0, places.total(), places.device)?,
    };
    let positions = positions.f_view([-1, 1, places.total()])?;
    let bias = if falcon {
        let rounded = slopes.f_to_kind(Kind::BFloat16)?.f_mul(&positions)?.f_to_kind(kind)?;
        rounded.f_div_number((config.head_dim as f64).sqrt())?
    } else {
        slopes.f_mul(&positions)?.f_to_kind(kind)?
    };
    Ok(bias.f_unsqueeze(2)?)
}
