//! Masks: the places that each query may look at.

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::kernels::number::{self, WithNumber};

#[derive(Debug)]
pub(in crate::models) enum Mask {
    Everything,
    /// Itself and the places before it, where queries and keys are the same.
    Causal,
    /// True where a query may look; broadcast to `[batch, heads, queries, keys]`.
    Seen(Tensor),
    /// Added to the scores, broadcast to `[batch, heads, queries, keys]`.
    Added(Tensor),
}

/// The numbers of heads: of queries, of keys and values.
pub(in crate::models) type Heads = (i64, i64);

/// The places of a batch, behind those that have passed before.
#[derive(Debug, Clone, Copy)]
pub(in crate::models) struct Places<'a> {
    pub(in crate::models) start: i64,
    pub(in crate::models) length: i64,
    pub(in crate::models) device: Device,
    /// `[batch, start + length]`, true where there is a token; `None`: everywhere.
    pub(in crate::models) tokens: Option<&'a Tensor>,
    /// `[batch, length]`, the number of the document that a place belongs to; `None`: each row is one.
    pub(in crate::models) documents: Option<&'a Tensor>,
    /// `[batch, length]`, the number of the block that a place belongs to, whose places look at each other; 0: none.
    pub(in crate::models) blocks: Option<&'a Tensor>,
}

impl Places<'_> {
    pub(in crate::models) fn total(&self) -> i64 {
        self.start + self.length
    }

    /// `[length]`, or `[batch, length]` where rows differ: by documents, or by tokens if padding `counts` for nothing.
    pub(in crate::models) fn positions(&self, by_tokens: bool) -> Result<Tensor> {
        let places = number::arange(self.start, self.total(), self.device)?;
        if let Some(documents) = self.documents {
            let before = documents.f_narrow(1, 0, self.length - 1)?;
            let starts = documents.f_narrow(1, 1, self.length - 1)?.f_ne_tensor(&before)?;
            let starts = starts.f_constant_pad_nd([1, 0])?;
            let starts = places.f_mul(&starts.f_to_kind(Kind::Int64)?)?.f_cummax(1)?.0;
            return Ok(places.f_sub(&starts)?);
        }
        match self.tokens {
            Some(tokens) if by_tokens => {
                Ok(counted(tokens)?.f_narrow(1, self.start, self.length)?)
            }
            _ => Ok(places),
        }
    }

    /// `[length, total]` or `[batch, 1, length, total]`, true where a place may look: at itself and at those before it
    /// in its document and within the window, and at its block.
    fn seen(&self, window: Option<i64>) -> Result<Tensor> {
        let keys = number::arange(0, self.total(), self.device)?;
        let queries = keys.f_narrow(0, self.start, self.length)?.f_unsqueeze(1)?;
        let mut seen = keys.f_le_tensor(&queries)?;
        if let Some(blocks) = self.blocks {
            let same = blocks.f_unsqueeze(2)?.f_eq_tensor(&blocks.f_unsqueeze(1)?)?;
            let same = same.f_logical_and(&blocks.f_unsqueeze(1)?.f_to_kind(Kind::Bool)?)?;
            seen = seen.f_logical_or(&same.f_unsqueeze(1)?)?;
        }
        if let Some(window) = window {
            seen = seen.f_logical_and(&keys.f_gt_tensor(&queries.f_sub_number(window)?)?)?;
        }
        if let Some(tokens) = self.tokens {
            let shown = seen.f_logical_and(&tokens.f_unsqueeze(1)?.f_unsqueeze(1)?)?;
            // Padding looks at itself: a row without any place to look at is not a number.
            seen = shown.f_logical_or(&keys.f_eq_tensor(&queries)?)?;
        }
        if let Some(documents) = self.documents {
            let same = documents.f_unsqueeze(2)?.f_eq_tensor(&documents.f_unsqueeze(1)?)?;
            seen = seen.f_logical_and(&same.f_unsqueeze(1)?)?;
        }
        Ok(seen)
    }
}

/// The number of tokens before each place, as transformers counts them.
pub(in crate::models) fn counted(tokens: &Tensor) -> Result<Tensor> {
    Ok(tokens.f_cumsum(1, Kind::Int64)?.f_sub_number(1)?.f_at_least(0)?)
}

impl Mask {
    /// Each place looks at itself and at those before it, within the window.
    pub(in crate::models) fn causal(places: &Places, window: Option<i64>) -> Result<Self> {
        let window = window.filter(|window| *window < places.total());
        let Places { tokens, documents, blocks, .. } = places;
        if tokens.is_some() || documents.is_some() || blocks.is_some() || window.is_some() {
            return Ok(Mask::Seen(places.seen(window)?));
        }
        match (places.start, places.length) {
            // The last place sees all.
            (1.., 1) => Ok(Mask::Everything),
            (0, _) => Ok(Mask::Causal),
            _ => Ok(Mask::Seen(places.seen(None)?)),
        }
    }

    /// Each query looks at every token; `tokens` `[batch, keys]` is true where there is one.
    pub(in crate::models) fn tokens(tokens: Option<&Tensor>) -> Result<Self> {
        match tokens {
            // [batch, 1, 1, keys]: the kernel spreads it, so that none of [queries, keys] is made.
            Some(tokens) => {
                Ok(Mask::Seen(tokens.f_to_kind(Kind::Bool)?.f_unsqueeze(1)?.f_unsqueeze(1)?))
            }
            None => Ok(Mask::Everything),
        }
    }

    /// The same with a bias on the scores of what is seen, `[batch or 1, heads, queries or 1, keys]`.
    pub(in crate::models) fn with_bias(self, bias: Tensor, places: &Places) -> Result<Self> {
        let seen = match self {
            Mask::Everything => return Ok(Mask::Added(bias)),
            Mask::Added(added) => return Ok(Mask::Added(added.f_add(&bias)?)),
            Mask::Causal => places.seen(None)?,
            Mask::Seen(seen) => seen,
        };
        let kind = bias.f_kind()?;
        // The lowest finite number: with minus infinity a row that sees nothing would not be a number.
        let hidden = number::full([0; 0], lowest(kind), (kind, bias.device()))?;
        Ok(Mask::Added(bias.f_where_self(&seen, &hidden)?))
    }

    /// The same for attention of this kind, in the form that attention would bring it into anew in each block.
    pub(in crate::models) fn ready(self, kind: Kind, heads: Heads) -> Result<Self> {
        let (Mask::Seen(mask) | Mask::Added(mask)) = &self else { return Ok(self) };
        let (rows, device) = (mask.size().iter().rev().nth(1).copied(), mask.device());
        let grouped = self.is_grouped(rows.unwrap_or(1), device);
        let mask = if grouped { self.of_groups(heads)? } else { self };
        if device.is_cuda() {
            return mask.in_rows(kind);
        }
        Ok(mask)
    }

    /// True if so many queries on this device are to stand in groups, and the mask does. Heads of a group have the same
    /// keys: their queries can stand as those of one head, so that keys and values are not repeated for kernels that
    /// know no groups.
    pub(in crate::models) fn is_grouped(&self, queries: i64, device: Device) -> bool {
        matches!(self, Mask::Seen(_) | Mask::Added(_)) && (queries == 1 || device.is_cuda())
    }

    /// For the queries of a group, `[batch, kv_heads or 1, queries · group or 1, keys]`.
    pub(in crate::models) fn of_groups(self, (heads, kv_heads): Heads) -> Result<Self> {
        let group = heads / kv_heads;
        self.map(|x| {
            let x =
                if x.dim() == 2 { x.f_unsqueeze(0)?.f_unsqueeze(0)? } else { x.shallow_clone() };
            let (batch, of, queries, keys) = x.size4()?;
            if group == 1 || (of, queries) == (1, 1) {
                return Ok(x);
            }
            let x = match of {
                1 => x.f_unsqueeze(2)?.f_expand([batch, 1, group, queries, keys], false)?,
                _ => x.f_view([batch, kv_heads, group, queries, keys])?,
            };
            let of = x.size()[1];
            Ok(x.f_transpose(2, 3)?.f_reshape([batch, of, queries * group, keys])?)
        })
    }

    /// Added to the scores, with rows that begin where kernels on CUDA can load them.
    pub(in crate::models) fn in_rows(self, kind: Kind) -> Result<Self> {
        let added = match self {
            // 0 where a query may look, minus infinity elsewhere.
            Mask::Seen(seen) => seen.f_to_kind(kind)?.f_log_()?,
            Mask::Added(added) => added.f_to_kind(kind)?,
            unseen => return Ok(unseen),
        };
        let strides = added.stride();
        let (last, others) = strides.split_last().unwrap_or((&1, &[]));
        if *last == 1 && others.iter().all(|stride| stride % ROW == 0) {
            return Ok(Mask::Added(added));
        }
        Ok(Mask::Added(in_rows(&added)?))
    }

    /// The part for `count` keys from the first one on.
    pub(in crate::models) fn keys(&self, first: i64, count: i64) -> Result<Self> {
        let part = |x: &Tensor| -> Result<Tensor> {
            let part = x.f_narrow(-1, first, count)?;
            // Kernels load several elements at once: the first must not stand in the middle of a row.
            if first > 0 && part.device().is_cuda() {
                return in_rows(&part);
            }
            Ok(part)
        };
        self.shallow_clone().map(part)
    }

    pub(in crate::models) fn shallow_clone(&self) -> Self {
        match self {
            Mask::Seen(seen) => Mask::Seen(seen.shallow_clone()),
            Mask::Added(added) => Mask::Added(added.shallow_clone()),
            Mask::Causal => Mask::Causal,
            Mask::Everything => Mask::Everything,
        }
    }

    fn map(self, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        match self {
            Mask::Seen(seen) => Ok(Mask::Seen(change(&seen)?)),
            Mask::Added(added) => Ok(Mask::Added(change(&added)?)),
            without => Ok(without),
        }
    }
}

/// A copy whose rows begin at multiples of [`ROW`] elements.
fn in_rows(x: &Tensor) -> Result<Tensor> {
    let keys = *x.size().last().unwrap_or(&0);
    // Padding keeps the order of memory, in which T5's biases have the heads last.
    let x = x.f_contiguous()?;
    Ok(x.f_constant_pad_nd([0, ROW - keys % ROW])?.f_narrow(-1, 0, keys)?)
}

/// Kernels of attention on CUDA load masks by at most 16 elements.
const ROW: i64 = 16;

fn lowest(kind: Kind) -> f64 {
    match kind {
        Kind::Half => -65504.,
        Kind::BFloat16 => -3.3895313892515355e38,
        Kind::Double => f64::MIN,
        _ => f64::from(f32::MIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_in_rows_has_its_values_in_rows_whatever_the_order_of_memory() {
        let options = (Kind::Float, Device::Cpu);
        for order in [[0, 1, 2, 3], [0, 3, 1, 2], [3, 2, 1, 0]] {
            let mask = Tensor::randn([2, 3, 5, 7], options).permute(order);
            let Mask::Added(rows) = Mask::Added(mask.copy()).in_rows(Kind::Float).unwrap() else {
                panic!("the mask is no longer added")
            };
            let strides = rows.stride();
            assert_eq!(strides[3], 1, "{order:?}: {strides:?}");
            assert!(strides[..3].iter().all(|stride| stride % ROW == 0), "{order:?}: {strides:?}");
            assert_eq!(rows, mask);
        }
    }
}
