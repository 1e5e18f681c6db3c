//! The numbers of an update that change from step to step: the learning rate, and what follows from the step's number.

use tch::Tensor;

use crate::error::Result;
use crate::kernels::number::WithNumber;

/// As many as an algorithm needs: `Algorithm::numbers` says what each of them is.
pub(super) const COUNT: usize = 3;

/// Those of one run of slots.
#[derive(Debug)]
pub(super) enum Numbers {
    Known([f64; COUNT]),
    /// Scalars: in f64, and in the kind of the update.
    OnDevice([Tensor; COUNT], [Tensor; COUNT]),
}

impl Numbers {
    pub(super) fn multiply(&self, at: usize, tensor: &mut Tensor) -> Result<()> {
        let _ = match self {
            Numbers::Known(all) => tensor.f_mul_scalar_(all[at])?,
            Numbers::OnDevice(_, all) => tensor.f_mul_(&all[at])?,
        };
        Ok(())
    }

    pub(super) fn add(&self, at: usize, tensor: &mut Tensor) -> Result<()> {
        let _ = match self {
            Numbers::Known(all) => tensor.f_add_scalar_(all[at])?,
            Numbers::OnDevice(_, all) => tensor.f_add_(&all[at])?,
        };
        Ok(())
    }

    pub(super) fn times(&self, at: usize, tensor: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Numbers::Known(all) => tensor.f_mul_number(all[at])?,
            Numbers::OnDevice(_, all) => tensor.f_mul(&all[at])?,
        })
    }

    /// A scalar in f64 times the number.
    pub(super) fn times_wide(&self, at: usize, scalar: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Numbers::Known(all) => scalar.f_mul_number(all[at])?,
            Numbers::OnDevice(all, _) => scalar.f_mul(&all[at])?,
        })
    }

    /// The number less a scalar in f64.
    pub(super) fn less_wide(&self, at: usize, scalar: &Tensor) -> Result<Tensor> {
        let negative = scalar.f_neg()?;
        Ok(match self {
            Numbers::Known(all) => negative.f_add_number(all[at])?,
            Numbers::OnDevice(all, _) => negative.f_add(&all[at])?,
        })
    }
}
