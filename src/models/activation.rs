//! The activation of an MLP, by transformers' name.

use tch::Tensor;

use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Gelu,
    GeluTanh,
    Relu,
    Silu,
    Tanh,
}

impl Activation {
    /// `key` is the key of `config.json` that holds the name.
    pub(super) fn named(name: &str, key: &str) -> Result<Self> {
        match name {
            "gelu" | "gelu_python" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            "silu" | "swish" => Ok(Activation::Silu),
            "tanh" => Ok(Activation::Tanh),
            other => Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "'{key}' is '{other}', expected 'gelu', 'gelu_new', 'gelu_pytorch_tanh', 'relu', 'silu' or 'tanh'"
                ),
            )),
        }
    }

    pub(super) fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Gelu => Ok(x.f_gelu("none")?),
            Activation::GeluTanh => Ok(x.f_gelu("tanh")?),
            Activation::Relu => Ok(x.f_relu()?),
            Activation::Silu => Ok(x.f_silu()?),
            Activation::Tanh => Ok(x.f_tanh()?),
        }
    }
}
