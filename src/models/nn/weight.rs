//! A matrix of the model that may be kept in few bits, or elsewhere, until it is needed.

use tch::{no_grad, Device, Kind, Tensor};

use super::streamed::Matrix;
use crate::autograd::loss::HeadWeight;
use crate::device::transfer::sent;
use crate::error::{refuse, Result};
use crate::kernels::product::linear;
use crate::pretrained::kept::Kept;
use crate::quantised::{Encoding, Quantised};

/// So many weights of a head are computed at a time.
const TILE: i64 = 1 << 22;

#[derive(Debug)]
pub(in crate::models) struct Weight {
    /// The variable: the weights, or what is kept of them.
    variable: Tensor,
    elsewhere: Option<Box<Elsewhere>>,
}

/// The weights of a variable that cannot be multiplied with as it is.
#[derive(Debug, Clone)]
struct Elsewhere {
    shape: Vec<i64>,
    encoding: Option<Encoding>,
    kind: Kind,
    /// The kind of the variable when the model was loaded.
    stored: Option<Kind>,
    /// The variable's name, if its storage comes when it is needed.
    streamed: Option<String>,
}

/// One that is used as it is.
impl From<Tensor> for Weight {
    fn from(variable: Tensor) -> Self {
        Weight { variable, elsewhere: None }
    }
}

impl Weight {
    pub(super) fn kept(variable: Tensor, kept: &Kept) -> Self {
        let Kept { name, shape, encoding, kind, streamed, .. } = kept;
        let streamed = streamed.then(|| name.clone());
        let (shape, encoding, kind) = (shape.clone(), *encoding, *kind);
        let stored = variable.f_kind().ok();
        let elsewhere = Elsewhere { shape, encoding, kind, stored, streamed };
        Weight { variable, elsewhere: Some(Box::new(elsewhere)) }
    }

    pub(in crate::models) fn shallow_clone(&self) -> Self {
        Weight { variable: self.variable.shallow_clone(), elsewhere: self.elsewhere.clone() }
    }

    pub(in crate::models) fn size(&self) -> Vec<i64> {
        self.elsewhere.as_ref().map_or_else(|| self.variable.size(), |kept| kept.shape.clone())
    }

    /// The kind of the values.
    pub(in crate::models) fn kind(&self) -> Result<Kind> {
        Ok(match &self.elsewhere {
            Some(kept) => kept.kind,
            None => self.variable.f_kind()?,
        })
    }

    /// The variable: the weights, or what is kept of them.
    pub(in crate::models) fn variable(&self) -> &Tensor {
        &self.variable
    }

    /// The variable, if its storage comes when it is needed.
    pub(super) fn streamed(&self) -> Option<Matrix> {
        let name = self.elsewhere.as_ref()?.streamed.clone()?;
        Some((name, self.variable.shallow_clone()))
    }

    /// True if there is no weight: a tied one.
    pub(super) fn is_empty(&self) -> bool {
        self.elsewhere.is_none() && self.variable.numel() == 0
    }

    /// True if the weights are kept in few bits.
    pub(super) fn is_encoded(&self) -> bool {
        self.encoding().is_some()
    }

    fn encoding(&self) -> Option<Encoding> {
        self.elsewhere.as_ref()?.encoding
    }

    /// The weights in few bits; `None` if they are not kept so.
    fn quantised(&self) -> Result<Option<(Quantised, Kind)>> {
        let Some(Elsewhere { shape, encoding: Some(encoding), kind, .. }) =
            self.elsewhere.as_deref()
        else {
            return Ok(None);
        };
        Ok(Some((Quantised::new(&self.variable, shape, *encoding)?, *kind)))
    }

    /// The values on this device, in the model's kind. They are dropped with the last use, in a graph too.
    pub(in crate::models) fn values(&self, device: Device) -> Result<Tensor> {
        let Some(kept) = &self.elsewhere else { return Ok(self.variable.shallow_clone()) };
        no_grad(|| match self.quantised()? {
            Some((quantised, kind)) if quantised.device() == device => quantised.dequantise(kind),
            Some((quantised, kind)) => {
                let there = sent(quantised.data(), device)?;
                Quantised::new(&there, &kept.shape, quantised.encoding())?.dequantise(kind)
            }
            None => {
                let found = self.variable.f_kind()?;
                if kept.stored.is_some_and(|stored| stored != found) {
                    refuse!(
                        KindMismatch,
                        "'{}' is streamed and has the kind {found:?}, expected that of the file: was the VarStore cast \
                         after loading? Choose the kind when the model is loaded",
                        kept.streamed.as_deref().unwrap_or_default()
                    );
                }
                Ok(sent(&self.variable, device)?.f_to_kind(kept.kind)?)
            }
        })
    }

    /// The rows of these numbers `[…]`: `[…, columns]`. The row `padding` gets no gradient.
    pub(in crate::models) fn lookup(&self, ids: &Tensor, padding: i64) -> Result<Tensor> {
        match self.quantised()? {
            Some((quantised, kind)) => quantised.gather(ids, kind),
            None => Ok(Tensor::f_embedding(&self.variable, ids, padding, false, false)?),
        }
    }

    /// x · weightᵀ + bias for a head, whose rows are computed a tile at a time where they are in few bits.
    pub(in crate::models) fn logits(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let Some((quantised, kind)) = self.quantised()? else {
            return Ok(x.f_linear(&self.variable, bias)?);
        };
        let [rows, columns] = quantised.shape()[..] else {
            return Ok(x.f_linear(&self.variable, bias)?);
        };
        let height = (TILE / columns.max(1)).max(1);
        let mut parts = Vec::new();
        for start in (0..rows).step_by(height as usize) {
            let tile = no_grad(|| quantised.rows(start, height.min(rows - start), kind))?;
            parts.push(linear(x, &tile, None)?);
        }
        let logits = Tensor::f_cat(&parts, -1)?;
        match bias {
            Some(bias) => Ok(logits.f_add(bias)?),
            None => Ok(logits),
        }
    }

    /// The weight of the loss.
    pub(in crate::models) fn of_head(&self) -> Result<HeadWeight> {
        Ok(match self.quantised()? {
            Some((quantised, kind)) => HeadWeight::Quantised(quantised, kind),
            None => HeadWeight::Plain(self.variable.shallow_clone()),
        })
    }
}
