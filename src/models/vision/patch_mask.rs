//! The patches of images that are padded to one size.

use tch::{Kind, Tensor};

use super::patches::Grid;
use crate::error::{refuse, Result};
use crate::kernels::number::{self, WithNumber};
use crate::models::inputs::Inputs;
use crate::models::nn::Mask;

/// The patches that hold a part of an image.
#[derive(Debug)]
pub(super) struct PatchMask {
    /// `[images, rows, columns]`, true where there is one.
    shown: Tensor,
    padded: bool,
}

impl PatchMask {
    /// Those of the inputs' images, by their mask if there is one.
    pub(super) fn of(inputs: &Inputs, grid: &Grid) -> Result<Self> {
        let images = inputs.needed_images()?;
        let (rows, columns) = grid.rows_and_columns(images)?;
        let (count, _, height, width) = images.size4()?;
        let Some(mask) = inputs.pixel_attention_mask else {
            let shown = number::full([count, rows, columns], 1, (Kind::Bool, images.device()))?;
            return Ok(PatchMask { shown, padded: false });
        };
        if mask.size() != [count, height, width] {
            refuse!(
                ShapeMismatch,
                "'pixel_attention_mask' has shape {:?}, expected that of the images, [{count}, {height}, {width}]",
                mask.size()
            );
        }
        let patch = grid.patch_size;
        let mask = mask.f_narrow(1, 0, rows * patch)?.f_narrow(2, 0, columns * patch)?;
        let mask = mask.f_reshape([count, rows, patch, columns, patch])?;
        let shown = mask.f_to_kind(Kind::Bool)?.f_any_dims([2_i64, 4].as_slice(), false)?;
        Ok(PatchMask { shown, padded: true })
    }

    /// Each patch looks at those that are shown.
    pub(super) fn mask(&self) -> Result<Mask> {
        let shown = self.shown.f_flatten(1, 2)?;
        Mask::tokens(self.padded.then_some(&shown))
    }

    /// The numbers of the position embeddings `[images, patches]`: those of the same parts of an image that fills the
    /// grid. Padding has the first.
    pub(super) fn positions(&self, grid: &Grid) -> Result<Tensor> {
        let side = grid.side();
        let apart = 1. / side as f64;
        let bounds = number::steps(apart, 1., apart, self.shown.device())?;
        let along = |line: Tensor| -> Result<Tensor> {
            let count = line.f_sum_dim_intlist([1_i64].as_slice(), true, Kind::Int64)?;
            let places = number::arange(0, line.size2()?.1, line.device())?;
            let parts = places.f_to_kind(Kind::Float)?.f_mul(&count.f_reciprocal()?)?;
            Ok(parts.f_at_most(1. - 1e-6)?.f_bucketize(&bounds, false, true)?)
        };
        let rows = along(self.shown.f_select(2, 0)?)?.f_unsqueeze(2)?;
        let columns = along(self.shown.f_select(1, 0)?)?.f_unsqueeze(1)?;
        let numbers = rows.f_mul_number(side)?.f_add(&columns)?;
        Ok(numbers.f_mul(&self.shown.f_to_kind(Kind::Int64)?)?.f_flatten(1, 2)?)
    }
}
