//! The activation of an MLP, by transformers' name.

use tch::Tensor;

use crate::error::{refusal, Result};
use crate::kernels::fused;
use crate::kernels::fused_forms::Gate;
use crate::kernels::number::WithNumber;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models) enum Activation {
    Gelu,
    GeluTanh,
    QuickGelu,
    Relu,
    Silu,
    Tanh,
}

impl Activation {
    /// `key` is the key of `config.json` that holds the name.
    pub(in crate::models) fn named(name: &str, key: &str) -> Result<Self> {
        match name {
            "gelu" | "gelu_python" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            "quick_gelu" => Ok(Activation::QuickGelu),
            "relu" => Ok(Activation::Relu),
            "silu" | "swish" => Ok(Activation::Silu),
            "tanh" => Ok(Activation::Tanh),
            other => Err(refusal!(
                Unsupported,
                "'{key}' is '{other}', expected 'gelu', 'gelu_new', 'gelu_pytorch_tanh', 'quick_gelu', 'relu', 'silu' \
                 or 'tanh'"
            )),
        }
    }

    pub(in crate::models) fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Gelu => Ok(x.f_gelu("none")?),
            Activation::GeluTanh => Ok(x.f_gelu("tanh")?),
            Activation::QuickGelu => Ok(x.f_mul_number(1.702)?.f_sigmoid()?.f_mul(x)?),
            Activation::Relu => Ok(x.f_relu()?),
            Activation::Silu => Ok(x.f_silu()?),
            Activation::Tanh => Ok(x.f_tanh()?),
        }
    }

    /// The activation of `gate` times `up`.
    pub(in crate::models) fn gated(self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let fused = self.gate().map(|form| fused::gated(gate, up, form)).transpose()?;
        match fused.flatten() {
            Some(gated) => Ok(gated),
            None => Ok(self.apply(gate)?.f_mul(up)?),
        }
    }

    /// The same of two halves, gate and up, of the last dimension.
    pub(in crate::models) fn gated_in_one(self, both: &Tensor) -> Result<Tensor> {
        let fused = self.gate().map(|form| fused::gated_in_one(both, form)).transpose()?;
        match fused.flatten() {
            Some(gated) => Ok(gated),
            None => {
                let both = both.f_chunk(2, -1)?;
                Ok(self.apply(&both[0])?.f_mul(&both[1])?)
            }
        }
    }

    /// Its form as a gate in one function with what it is multiplied with.
    fn gate(self) -> Option<Gate> {
        match self {
            Activation::Gelu => Some(Gate::Gelu),
            Activation::GeluTanh => Some(Gate::GeluTanh),
            Activation::QuickGelu => Some(Gate::QuickGelu),
            Activation::Relu => Some(Gate::Relu),
            Activation::Silu => Some(Gate::Silu),
            Activation::Tanh => None,
        }
    }
}
