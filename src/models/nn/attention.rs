//! Attention over several heads, of a sequence to itself or to another.

use tch::Tensor;

use super::cache::Slot;
use super::context::Context;
use super::head_norm::HeadNorm;
use super::linear::Linear;
use super::mask::Mask;
use super::rope::rotate_both;
use super::scores::{attend, Scores};
use crate::error::{Error, Result};
use crate::kernels::number::WithNumber;

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
