//! A matrix of the model that may be kept in few bits, or elsewhere, until it is needed.

use std::rc::Rc;
#[cfg(feature = "kernels")]
use std::sync::Arc;

use tch::{no_grad, Device, Kind, Tensor};

use super::rows::Rows;
use super::streamed::Matrix;
use crate::autograd::loss::HeadWeight;
use crate::autograd::scratch::{with_values, Fill, Pass};
use crate::device::trace::sent_numbers;
use crate::device::transfer::sent;
use crate::error::{refuse, Result};
#[cfg(feature = "kernels")]
use crate::kernels::packed::Packed;
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
    /// Per row of the weights, that of the encoded matrix, if they are not the same.
    rows: Option<Vec<i64>>,
    kind: Kind,
    /// The kind of the variable when the model was loaded.
    stored: Option<Kind>,
    /// The variable's name, if its storage comes when it is needed.
    streamed: Option<String>,
    /// The variable in another order.
    #[cfg(feature = "kernels")]
    packed: Option<Arc<Packed>>,
}

/// One that is used as it is.
impl From<Tensor> for Weight {
    fn from(variable: Tensor) -> Self {
        Weight { variable, elsewhere: None }
    }
}

impl Weight {
    pub(super) fn kept(variable: Tensor, kept: &Kept) -> Self {
        #[cfg(feature = "kernels")]
        let packed = kept.packed.then(Arc::default);
        let Kept { name, shape, encoding, rows, kind, streamed, .. } = kept;
        let streamed = streamed.map(|_| name.clone());
        let (shape, encoding, rows, kind) = (shape.clone(), *encoding, rows.clone(), *kind);
        let stored = variable.f_kind().ok();
        let elsewhere = Elsewhere {
            shape,
            encoding,
            rows,
            kind,
            stored,
            streamed,
            #[cfg(feature = "kernels")]
            packed,
        };
        Weight { variable, elsewhere: Some(Box::new(elsewhere)) }
    }

    pub(in crate::models) fn shallow_clone(&self) -> Self {
        Weight { variable: self.variable.shallow_clone(), elsewhere: self.elsewhere.clone() }
    }

    /// The weight as this adapter has it.
    pub(in crate::models) fn of_adapter(&self, rows: &Rows, adapter: usize) -> Result<Self> {
        match self.elsewhere {
            // No adapter has its own.
            Some(_) => Ok(self.shallow_clone()),
            None => Ok(Weight::from(rows.of(&self.variable, adapter)?)),
        }
    }

    pub(in crate::models) fn size(&self) -> Vec<i64> {
        self.elsewhere.as_ref().map_or_else(|| self.variable.size(), |kept| kept.shape.clone())
    }

    /// The kind of the values.
    pub(in crate::models) fn kind(&self) -> Result<Kind> {
        Ok(match &self.elsewhere {
            Some(kept) if kept.encoding.is_some() || kept.streamed.is_some() => kept.kind,
            _ => self.variable.f_kind()?,
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

    /// True if the variable is multiplied with as it is.
    #[cfg(feature = "kernels")]
    pub(super) fn is_plain(&self) -> bool {
        self.elsewhere.is_none()
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

    /// The values on this device, in the model's kind.
    pub(in crate::models) fn values(&self, device: Device) -> Result<Tensor> {
        match self.computed(device)? {
            None => Ok(self.variable.shallow_clone()),
            Some((kind, fill)) => no_grad(|| {
                let values = Tensor::f_empty(self.size(), (kind, device))?;
                fill(&values)?;
                Ok(values)
            }),
        }
    }

    /// Calls `f` with the [`values`](Self::values), whose memory others get afterwards, as soon as no graph reads them.
    pub(super) fn with_values(
        &self,
        device: Device,
        f: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match self.computed(device)? {
            None => f(&self.variable),
            Some((kind, fill)) => with_values(&self.size(), (kind, device), fill, f),
        }
    }

    /// The product with `x` that [`Packed`] gives, if it gives one.
    #[cfg(feature = "kernels")]
    pub(super) fn packed_product(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        transposed: bool,
    ) -> Result<Option<Tensor>> {
        let packed = self.elsewhere.as_ref().and_then(|kept| kept.packed.as_ref());
        packed.map_or(Ok(None), |packed| packed.product(x, &self.variable, bias, transposed))
    }

    /// The kind of the values on this device and the way to them; `None` if they are those of the variable.
    fn computed(&self, device: Device) -> Result<Option<(Kind, Fill)>> {
        let Some(kept) = &self.elsewhere else { return Ok(None) };
        // Packed: the variable is what it is in a plain model.
        if kept.encoding.is_none() && kept.streamed.is_none() {
            return Ok(None);
        }
        if let Some((quantised, kind)) = self.quantised()? {
            let rows =
                kept.rows.as_ref().map(|rows| sent_numbers(rows, Device::Cpu)).transpose()?;
            let fill = move |out: &Tensor| match &rows {
                Some(rows) => quantised.of_rows(rows)?.values_into(out),
                None => quantised.values_into(out),
            };
            return Ok(Some((kind, Rc::new(fill))));
        }
        let found = self.variable.f_kind()?;
        if kept.stored.is_some_and(|stored| stored != found) {
            refuse!(
                KindMismatch,
                "'{}' is streamed and has the kind {found:?}, expected that of the file: was the VarStore cast after \
                 loading? Choose the kind when the model is loaded",
                kept.streamed.as_deref().unwrap_or_default()
            );
        }
        if (found, self.variable.device()) == (kept.kind, device) {
            return Ok(None);
        }
        let variable = self.variable.shallow_clone();
        let fill = move |out: &Tensor| {
            out.shallow_clone().f_copy_(&sent(&variable, out.device())?)?;
            Ok(())
        };
        Ok(Some((kept.kind, Rc::new(fill))))
    }

    /// The rows of these numbers `[…]`: `[…, columns]`. The row `padding` gets no gradient.
    pub(in crate::models) fn lookup(&self, ids: &Tensor, padding: i64) -> Result<Tensor> {
        if let Some(rows) = Rows::with_own([Some(&self.variable)]) {
            return rows.grouped(ids, [Some(&self.variable)], |ids, adapter| {
                self.of_adapter(&rows, adapter)?.lookup(ids, padding)
            });
        }
        match self.quantised()? {
            Some((quantised, kind)) => quantised.gather(ids, kind),
            None => Ok(Tensor::f_embedding(&self.variable, ids, padding, false, false)?),
        }
    }

    /// x · weightᵀ + bias for a head, whose rows are computed a tile at a time where they are in few bits.
    pub(in crate::models) fn logits(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let Some((quantised, kind)) = self.quantised()? else {
            return linear(x, &self.variable, bias);
        };
        let [rows, columns] = quantised.shape()[..] else {
            return linear(x, &self.variable, bias);
        };
        let height = (TILE / columns.max(1)).max(1);
        let place = (kind, quantised.device());
        let quantised = Rc::new(quantised);
        let _pass = Pass::begin();
        let part = |start: i64| {
            let quantised = quantised.clone();
            let fill = Rc::new(move |tile: &Tensor| quantised.rows_into(start, tile));
            let shape = [height.min(rows - start), columns];
            with_values(&shape, place, fill, |tile| linear(x, tile, None))
        };
        let parts = (0..rows).step_by(height as usize).map(part).collect::<Result<Vec<_>>>()?;
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
