//! Attention and rotation by operators.

use tch::{Device, Kind, Tensor};

use crate::kernels::fused_forms::Attended;

/// Attention with safe zeros where no key is seen.
pub(super) fn attended(of: &[Tensor], how: Attended) -> Tensor {
    let (heads, length, keys) = (of[0].size()[1], of[0].size()[2], of[1].size()[2]);
    let repeat = |x: &Tensor| x.repeat_interleave_self_int(heads / x.size()[1], 1, None);
    let mut scores = of[0].matmul(&repeat(&of[1]).transpose(2, 3)) * how.scale;
    if let Some(cap) = how.cap {
        scores = (scores / cap).tanh() * cap;
    }
    let seen = match how.mask {
        Some(mask) => mask.shallow_clone(),
        None => Tensor::ones([length, keys], (Kind::Bool, Device::Cpu)).tril(if how.causal {
            0
        } else {
            keys
        }),
    };
    let seen = seen.expand_as(&scores);
    let weights =
        scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY).softmax(-1, Kind::Double);
    let none = seen.any_dim(-1, true).logical_not();
    weights.masked_fill(&none, 0.).matmul(&repeat(&of[2]))
}

/// Heads turned by tables of cosines and signed sines.
pub(super) fn rotated(x: &Tensor, cos: &Tensor, sin: &Tensor, side_by_side: bool) -> Tensor {
    let dims = cos.size()[cos.dim() - 1];
    let part = x.narrow(-1, 0, dims);
    let other = if side_by_side {
        part.unflatten(-1, [dims / 2, 2]).flip([-1]).flatten(-2, -1)
    } else {
        part.roll([dims / 2], [-1])
    };
    let rest = x.narrow(-1, dims, x.size()[3] - dims);
    Tensor::cat(&[part * cos + other * sin, rest], -1)
}
