//! The activation of an MLP, by transformers' name.

use tch::Tensor;

use crate::error::{refusal, Result};
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
}
