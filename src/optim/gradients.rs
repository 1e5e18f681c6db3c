//! The gradient of an adapter, in one flat buffer of its master's layout and kind.

use tch::{COptimizer, Tensor};

use crate::adapter::flat::{copy_of, FlatParams};
use crate::error::{refusal, refuse, Result};

#[derive(Debug)]
pub(super) struct Gradients {
    /// The buffer, kept between steps so that a step allocates nothing.
    flat: Option<Tensor>,
    /// True for slots that have received a gradient since they were cleared.
    present: Vec<bool>,
    /// The variables, to clear the gradients that user code leaves in them.
    variables: COptimizer,
}

impl Gradients {
    pub(super) fn new(variables: COptimizer, slots: usize) -> Self {
        Gradients { flat: None, present: vec![false; slots], variables }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.present.contains(&true)
    }

    pub(super) fn is_present(&self, slot: usize) -> bool {
        self.present[slot]
    }

    pub(super) fn flat(&self) -> Option<&Tensor> {
        self.flat.as_ref()
    }

    pub(super) fn clear(&mut self) -> Result<()> {
        self.present.fill(false);
        Ok(self.variables.zero_grad()?)
    }

    /// Adds one tensor per slot, divided by `scale`; an undefined one adds nothing.
    pub(super) fn add(
        &mut self,
        layout: &FlatParams,
        found: Vec<Tensor>,
        scale: f64,
    ) -> Result<()> {
        let found: Vec<Option<&Tensor>> =
            found.iter().map(|tensor| Some(tensor).filter(|t| t.defined())).collect();
        if found.iter().all(Option::is_none) {
            refuse!(
                NoGradient,
                "no selected tensor has a gradient: call `backward` first, and check that the loss depends on the \
                 selected modules"
            );
        }
        let first = self.is_empty();
        self.follow(layout)?;
        let mut flat = match &self.flat {
            Some(flat) => flat.shallow_clone(),
            None => layout.master().f_zeros_like()?,
        };
        let mut new = if first { flat.shallow_clone() } else { flat.f_zeros_like()? };
        layout.gather(&found, &new)?;
        if scale != 1. {
            let _ = new.f_div_scalar_(scale)?;
        }
        if !first {
            let _ = flat.f_add_(&new)?;
        }
        for (present, gradient) in self.present.iter_mut().zip(&found) {
            *present |= gradient.is_some();
        }
        self.flat = Some(flat);
        Ok(())
    }

    /// Moves to the device and kind of the masters, if they have moved.
    pub(super) fn follow(&mut self, layout: &FlatParams) -> Result<()> {
        if let Some(flat) = self.flat.take() {
            let master = layout.master();
            self.flat = Some(flat.f_to_device(master.device())?.f_to_kind(master.f_kind()?)?);
        }
        Ok(())
    }

    /// The name of each slot with a copy of its gradient, if there is one.
    pub(super) fn named(
        &self,
        layout: &FlatParams,
        names: Vec<String>,
    ) -> Result<Vec<(String, Option<Tensor>)>> {
        let of = |(slot, name): (usize, String)| {
            let flat = self.flat.as_ref().filter(|_| self.present[slot]);
            let view = flat.map(|flat| copy_of(&layout.view_of(flat, slot)?)).transpose()?;
            Ok((name, view))
        };
        names.into_iter().enumerate().map(of).collect()
    }

    pub(super) fn norm(&self) -> Result<Tensor> {
        match &self.flat {
            Some(flat) => Ok(flat.f_norm()?),
            None => Err(refusal!(NoGradient, "there is no gradient: call `backward` first")),
        }
    }

    pub(super) fn clip_norm(&mut self, max: f64) -> Result<Tensor> {
        let norm = self.norm()?;
        // The coefficient stays on the device: multiplying by 1 is cheaper than waiting for its value.
        let coefficient =
            norm.f_add_scalar(1e-6)?.f_reciprocal()?.f_mul_scalar(max)?.f_clamp_max(1.)?;
        if let Some(flat) = &mut self.flat {
            let _ = flat.f_mul_(&coefficient)?;
        }
        Ok(norm)
    }

    pub(super) fn clip_value(&mut self, max: f64) -> Result<()> {
        if let Some(flat) = &mut self.flat {
            let _ = flat.f_clamp_(-max, max)?;
        }
        Ok(())
    }
}
