//! Attention over several heads, of a sequence to itself or to another.

use tch::{Kind, Tensor};

use super::cache::Slot;
use super::context::Context;
use super::head_norm::HeadNorm;
use super::linear::Linear;
use super::mask::Mask;
use super::rope::rotate_both;
use crate::error::{Error, Result};
use crate::kernels::attention as kernels;
use crate::kernels::fused;
use crate::kernels::fused_forms::Attended;
use crate::kernels::number::WithNumber;

/// From so many keys on, one query's attention in f32 is worth their conversion where the fused kernel is slow.
const MANY_KEYS: i64 = 64;

#[derive(Debug)]
pub(in crate::models) struct Attention {
    pub(in crate::models) qkv: Qkv,
    pub(in crate::models) o: Linear,
    pub(in crate::models) heads: i64,
    /// Of keys and values; they divide `heads`.
    pub(in crate::models) kv_heads: i64,
    pub(in crate::models) head_dim: i64,
    /// Of queries and of keys.
    pub(in crate::models) norms: [HeadNorm; 2],
    pub(in crate::models) rotation: Option<Rotation>,
    pub(in crate::models) scores: Scores,
    /// Bounds queries, keys and values before anything else is done with them.
    pub(in crate::models) clip: Option<f64>,
    /// The number of places that a query sees; `None`: all.
    pub(in crate::models) window: Option<i64>,
}

/// The projections to queries, keys and values.
#[derive(Debug)]
pub(in crate::models) enum Qkv {
    Apart([Linear; 3]),
    /// One matrix: queries, keys, values.
    Parts(Linear),
    /// One matrix: per key-value head its queries, its key, its value.
    Groups(Linear),
}

/// The rope that turns queries and keys.
#[derive(Debug, Clone, Copy)]
pub(in crate::models) struct Rotation {
    /// Its place among the context's angles.
    pub(in crate::models) rope: usize,
    /// The dimensions that form a pair stand side by side, not half a head apart.
    pub(in crate::models) side_by_side: bool,
}

/// From queries and keys to weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::models) struct Scores {
    /// The factor of the scores.
    pub(in crate::models) scale: f64,
    /// Bounds them as Gemma 2 does.
    pub(in crate::models) cap: Option<f64>,
    pub(in crate::models) dropout: f64,
}

impl Attention {
    /// One of encoders: as many keys as queries, scores divided by √head_dim.
    pub(in crate::models) fn plain(
        qkv: Qkv,
        o: Linear,
        (size, heads): (i64, i64),
        dropout: f64,
    ) -> Self {
        let head_dim = size / heads;
        Attention {
            qkv,
            o,
            heads,
            kv_heads: heads,
            head_dim,
            norms: [HeadNorm::None, HeadNorm::None],
            rotation: None,
            scores: Scores { scale: (head_dim as f64).powf(-0.5), cap: None, dropout },
            clip: None,
            window: None,
        }
    }

    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let qkv = match &self.qkv {
            Qkv::Apart(all) => &all[..],
            Qkv::Parts(one) | Qkv::Groups(one) => std::slice::from_ref(one),
        };
        qkv.iter().chain([&self.o])
    }

    /// Hidden states `[batch, length, size]` look at themselves and at what the slot has kept.
    pub(in crate::models) fn forward(
        &self,
        hidden: &Tensor,
        context: &Context,
        slot: Option<Slot>,
    ) -> Result<Tensor> {
        let [q, k, v] = self.split(hidden)?;
        let [q_norm, k_norm] = &self.norms;
        let [q, k] = self.turned([q_norm.forward(q)?, k_norm.forward(k)?], context)?;
        let (q, k, v) = (q.f_transpose(1, 2)?, k.f_transpose(1, 2)?, v.f_transpose(1, 2)?);
        let (k, v) = match slot {
            Some(slot) => slot.extend(&k, &v, self.window)?,
            None => (k, v),
        };
        self.attended(&q, &k, &v, context.mask(self.window), context.train)
    }

    /// Hidden states `[batch, length, size]` look at another sequence, `source` `[batch, length, size]`.
    pub(in crate::models) fn across(
        &self,
        hidden: &Tensor,
        source: &Tensor,
        context: &Context,
        slot: Option<Slot>,
    ) -> Result<Tensor> {
        if let Qkv::Groups(_) = &self.qkv {
            return self.forward(hidden, context, slot);
        }
        let (heads, kv_heads) = (self.heads, self.kv_heads);
        let starts = [0, heads, heads + kv_heads];
        let apart = |at: usize, x: &Tensor, heads: i64| -> Result<Tensor> {
            let projected = match &self.qkv {
                Qkv::Apart(all) => all[at].forward(x)?,
                Qkv::Parts(one) | Qkv::Groups(one) => {
                    let [start, count] = [starts[at], heads].map(|heads| heads * self.head_dim);
                    one.forward_part(x, start, count)?
                }
            };
            Ok(self.by_head(projected, heads)?.f_transpose(1, 2)?)
        };
        let both = || Ok((apart(1, source, kv_heads)?, apart(2, source, kv_heads)?));
        let (keys, values) = match slot {
            Some(slot) => slot.once(both)?,
            None => both()?,
        };
        let q = apart(0, hidden, heads)?;
        self.attended(&q, &keys, &values, &context.across, context.train)
    }

    fn attended(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: &Mask,
        train: bool,
    ) -> Result<Tensor> {
        let scores =
            Scores { dropout: if train { self.scores.dropout } else { 0. }, ..self.scores };
        let attended = attend(q, k, v, mask, scores)?;
        self.o.forward(&attended.f_transpose(1, 2)?.f_flatten(2, 3)?)
    }

    /// `[batch, length, heads · head_dim]` to `[batch, length, heads, head_dim]`.
    fn by_head(&self, x: Tensor, heads: i64) -> Result<Tensor> {
        let (batch, length, _) = x.size3()?;
        Ok(x.f_view([batch, length, heads, self.head_dim])?)
    }

    /// Queries, keys and values: `[batch, length, heads, head_dim]`.
    fn split(&self, hidden: &Tensor) -> Result<[Tensor; 3]> {
        let (heads, kv_heads, dim) = (self.heads, self.kv_heads, self.head_dim);
        let clipped = |x: Tensor| match self.clip {
            Some(clip) => Ok::<_, Error>(x.f_bound(-clip, clip)?),
            None => Ok(x),
        };
        let project = |layer: &Linear| clipped(layer.forward(hidden)?);
        match &self.qkv {
            Qkv::Apart(all) => {
                let [q, k, v] = Linear::forward_all(all.each_ref(), hidden)?;
                Ok([
                    self.by_head(clipped(q)?, heads)?,
                    self.by_head(clipped(k)?, kv_heads)?,
                    self.by_head(clipped(v)?, kv_heads)?,
                ])
            }
            Qkv::Parts(all) => {
                let all = self.by_head(project(all)?, heads + 2 * kv_heads)?;
                three(all.f_split_with_sizes([heads, kv_heads, kv_heads], 2)?)
            }
            Qkv::Groups(all) => {
                let (batch, length, _) = hidden.size3()?;
                let group = heads / kv_heads;
                let all = project(all)?.f_view([batch, length, kv_heads, group + 2, dim])?;
                let [q, k, v] = three(all.f_split_with_sizes([group, 1, 1], 3)?)?;
                let whole = |x: Tensor, heads: i64| x.f_reshape([batch, length, heads, dim]);
                Ok([whole(q, heads)?, whole(k, kv_heads)?, whole(v, kv_heads)?])
            }
        }
    }

    /// Queries and keys, `[batch, length, heads, head_dim]` each, turned where there is a rope.
    fn turned(&self, both: [Tensor; 2], context: &Context) -> Result<[Tensor; 2]> {
        match self.rotation {
            Some(Rotation { rope, side_by_side }) => {
                rotate_both(both, &context.angles[rope], side_by_side)
            }
            None => Ok(both),
        }
    }
}

fn three(parts: Vec<Tensor>) -> Result<[Tensor; 3]> {
    let mut parts = parts.into_iter();
    let mut next = || parts.next().unwrap_or_default();
    Ok([next(), next(), next()])
}

/// Queries `[batch, heads, length, head_dim]`, keys and values with fewer heads perhaps.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask, scores: Scores) -> Result<Tensor> {
    let (_, heads, length, _) = q.size4()?;
    if k.size4()?.1 < heads && mask.is_grouped(length, q.device()) {
        let one = length == 1;
        // After the rotation, queries and keys are parts of one tensor, all of which the keys would keep for the
        // backward pass.
        let k = if one { k.shallow_clone() } else { k.f_contiguous()? };
        return kernels::in_groups(q, &k, |q| attend_heads(q, &k, v, mask, scores, one));
    }
    attend_heads(q, k, v, mask, scores, length == 1)
}

/// The mask is that of these queries. `one`: they are those of one place.
fn attend_heads(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Mask,
    scores: Scores,
    one: bool,
) -> Result<Tensor> {
    if let Some(cap) = scores.cap {
        return attend_with_cap(q, k, v, mask, scores, cap);
    }
    let Scores { scale, dropout, .. } = scores;
    let (given, causal) = match mask {
        Mask::Everything => (None, false),
        Mask::Causal => (None, true),
        Mask::Seen(mask) | Mask::Added(mask) => (Some(mask), false),
    };
    let fused =
        |q: &Tensor, k: &Tensor, v: &Tensor| kernels::fused(q, k, v, given, dropout, causal, scale);
    if !matches!(mask, Mask::Added(_)) && dropout == 0. && kernels::fused_is_slow(q)? {
        if kernels::pays(q, k)? {
            return kernels::attend(q, k, v, given, causal, scale);
        }
        if one && k.size4()?.2 >= MANY_KEYS {
            let kind = q.f_kind()?;
            let wide = |x: &Tensor| x.f_to_kind(Kind::Float);
            let (q, k, v) = (wide(q)?, wide(k)?, wide(v)?);
            return Ok(fused(&q, &k, &v)?.f_to_kind(kind)?);
        }
    }
    fused(q, k, v)
}

/// The fused kernels have no cap on the scores.
fn attend_with_cap(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Mask,
    scores: Scores,
    cap: f64,
) -> Result<Tensor> {
    let seen = match mask {
        Mask::Everything => Some((None, false)),
        Mask::Causal => Some((None, true)),
        Mask::Seen(seen) => Some((Some(seen), false)),
        Mask::Added(_) => None,
    };
    if let Some((mask, causal)) = seen.filter(|_| scores.dropout == 0.) {
        let how = Attended { mask, causal, scale: scores.scale, cap: Some(cap) };
        if let Some(attended) = fused::attend(q, k, v, how)? {
            return Ok(attended);
        }
    }
    let (_, heads, length, _) = q.size4()?;
    let repeat = |x: &Tensor| kernels::repeated(x, heads);
    let products = q.f_matmul(&repeat(k)?.f_transpose(2, 3)?)?.f_mul_number(scores.scale)?;
    let products = capped(products, Some(cap))?;
    let hidden =
        |x: Tensor, seen: &Tensor| x.f_fill_where(&seen.f_logical_not()?, f64::NEG_INFINITY);
    let products = match mask {
        Mask::Everything => products,
        Mask::Causal => {
            let all = Tensor::f_ones([length, length], (Kind::Bool, q.device()))?;
            hidden(products, &all.f_tril(0)?)?
        }
        Mask::Seen(seen) => hidden(products, seen)?,
        Mask::Added(added) => products.f_add(added)?,
    };
    let weights = products.f_softmax(-1, Kind::Float)?.f_to_kind(q.f_kind()?)?;
    Ok(weights.f_dropout(scores.dropout, scores.dropout > 0.)?.f_matmul(&repeat(v)?)?)
}

/// cap · tanh(x / cap)
pub(in crate::models) fn capped(x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        Some(cap) => Ok(x.f_div_number(cap)?.f_tanh()?.f_mul_number(cap)?),
        None => Ok(x),
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::models::nn::mask::Places;

    /// Attention in the forms that CUDA gets: masks added in rows, queries in groups, keys repeated.
    #[test]
    fn groups_and_rows_for_kernels_change_no_value_and_no_gradient() {
        tch::set_num_threads(1);
        let options = (Kind::Float, Device::Cpu);
        let (batch, heads, kv_heads, dim) = (2, 6, 2, 8);
        let tokens = Tensor::from_slice2(&[[false; 21], [true; 21]]);
        let _ = tokens.narrow(1, 5, 16).fill_(1);
        let documents =
            Tensor::arange(21, (Kind::Int64, Device::Cpu)).divide_scalar_mode(8, "floor");
        let documents = documents.expand([batch, 21], false).contiguous();
        for (start, length) in [(0, 21), (20, 1), (0, 1)] {
            let total = start + length;
            let make = |heads: i64, length: i64| {
                Tensor::randn([batch, length, heads, dim], options).set_requires_grad(true)
            };
            let qkv = [make(heads, length), make(kv_heads, total), make(kv_heads, total)];
            let [q, k, v] = [0, 1, 2].map(|i| qkv[i].transpose(1, 2));
            let upstream = Tensor::randn([batch, heads, length, dim], options);
            let all = |attended: Tensor| {
                let sum = (&attended * &upstream).sum(Kind::Float);
                let mut all = Tensor::run_backward(&[sum], &qkv, false, false);
                all.push(attended.detach());
                all
            };
            let tokens = tokens.narrow(1, 0, total);
            let documents = documents.narrow(1, 0, total);
            let whole = Places {
                start,
                length,
                device: Device::Cpu,
                tokens: None,
                documents: None,
                blocks: None,
            };
            let padded = Places { tokens: Some(&tokens), ..whole };
            let packed = Places { documents: Some(&documents), ..whole };
            let slopes = || Tensor::randn([1, heads, 1, total], options);
            let mut masks = vec![
                Mask::causal(&padded, None).unwrap(),
                Mask::causal(&padded, Some(7)).unwrap(),
                Mask::causal(&whole, Some(7)).unwrap(),
                Mask::causal(&whole, None).unwrap().with_bias(slopes(), &whole).unwrap(),
                Mask::causal(&padded, None).unwrap().with_bias(slopes(), &padded).unwrap(),
            ];
            if start == 0 {
                masks.push(Mask::causal(&packed, None).unwrap());
            }
            masks.retain(|mask| mask.is_grouped(1, Device::Cpu));
            let scores = |cap| Scores { scale: 0.3, cap, dropout: 0. };
            for (mask, cap) in masks.iter().flat_map(|mask| [(mask, None), (mask, Some(2.))]) {
                let expected = all(attend_heads(&q, &k, &v, mask, scores(cap), false).unwrap());
                let rows = mask
                    .shallow_clone()
                    .of_groups((heads, kv_heads))
                    .unwrap()
                    .in_rows(Kind::Float)
                    .unwrap();
                if let Mask::Added(added) = &rows {
                    let strides = added.stride();
                    let (last, others) = strides.split_last().unwrap();
                    assert!(
                        *last == 1 && others.iter().all(|stride| stride % 16 == 0),
                        "{strides:?}"
                    );
                }
                let attend = |q: &Tensor| attend_heads(q, &k, &v, &rows, scores(cap), false);
                let found = all(kernels::in_groups(&q, &k, attend).unwrap());
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found.size(), expected.size());
                    let off = (found - expected).abs().max().double_value(&[]);
                    assert!(off <= 1e-5, "{off} off for {length} behind {start}, {mask:?}");
                }
            }
            let causal = if start == 0 { Mask::Causal } else { Mask::Everything };
            let expected = all(attend(&q, &k, &v, &causal, scores(None)).unwrap());
            let [k, v] = [&k, &v].map(|x| kernels::repeated(x, heads).unwrap());
            let found = all(attend(&q, &k, &v, &causal, scores(None)).unwrap());
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs().max().double_value(&[]) <= 1e-5);
            }
        }
    }
}
