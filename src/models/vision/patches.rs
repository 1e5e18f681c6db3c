//! Images as sequences: patches, perhaps a class token in front of them, positions.

use serde_json::Value;
use tch::nn::Init;
use tch::{Kind, Tensor};

use super::block::BlockShape;
use crate::error::{refusal, refuse, Result};
use crate::models::config::size_or;
use crate::models::nn::{Rows, Weights};

/// The sizes of images and patches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Grid {
    pub(super) image_size: i64,
    pub(super) patch_size: i64,
    pub(super) channels: i64,
}

/// Patches by one convolution, and a class token if there is one.
#[derive(Debug)]
pub(super) struct Patches {
    grid: Grid,
    weight: Tensor,
    bias: Option<Tensor>,
    /// `[1, 1, size]` or `[size]`
    class: Option<Tensor>,
    /// `[1, places, size]` or `[places, size]`, that of the class token first.
    positions: Tensor,
}

impl Grid {
    /// Reads the sizes; `patch_size` is the default of that key.
    pub(super) fn read(config: &Value, patch_size: i64) -> Result<Self> {
        let image_size = size_or(config, "image_size", 224)?;
        let patch_size = size_or(config, "patch_size", patch_size)?;
        let channels = size_or(config, "num_channels", 3)?;
        if image_size < patch_size {
            refuse!(
                InvalidConfig,
                "patches of {patch_size} in images of {image_size} with {channels} channels"
            );
        }
        Ok(Grid { image_size, patch_size, channels })
    }

    /// The number of patches on each side.
    pub(super) fn side(&self) -> i64 {
        self.image_size / self.patch_size
    }

    /// The shape of the convolution's weight.
    pub(super) fn kernel(&self, size: i64) -> [i64; 4] {
        [size, self.channels, self.patch_size, self.patch_size]
    }

    /// The patches that images of this shape have: down and across.
    pub(super) fn rows_and_columns(&self, images: &Tensor) -> Result<(i64, i64)> {
        let (shape, patch, channels) = (images.size(), self.patch_size, self.channels);
        let fits = |size: i64| size > 0 && size % patch == 0;
        match shape[..] {
            // Pixels beyond the last whole patch are not seen.
            [_, found, height, width]
                if found == channels && [height, width] == [self.image_size; 2] =>
            {
                Ok((self.side(), self.side()))
            }
            [_, found, height, width] if found == channels && fits(height) && fits(width) => {
                Ok((height / patch, width / patch))
            }
            _ => Err(refusal!(
                ShapeMismatch,
                "the images have shape {shape:?}, expected [batch, {channels}, height, width] with multiples of {patch}"
            )),
        }
    }

    /// The images' shape must be `[batch, channels, size, size]`.
    pub(super) fn check_images(&self, images: &Tensor) -> Result<()> {
        let (size, expected) = (images.size(), [self.channels, self.image_size, self.image_size]);
        if size.len() != 4 || size[1..] != expected {
            refuse!(
                ShapeMismatch,
                "the images have shape {size:?}, expected [batch, {expected:?}]"
            );
        }
        Ok(())
    }
}

impl Patches {
    /// Under the names of ViT and DINOv2.
    pub(super) fn build(weights: &Weights, grid: Grid, shape: &BlockShape) -> Result<Self> {
        let (size, init) = (shape.size, shape.init());
        let places = 1 + grid.side().pow(2);
        let projection = weights.at("patch_embeddings.projection");
        // In this order: a seed gives the same weights in every version.
        Ok(Patches {
            grid,
            class: Some(weights.by_row("cls_token", &[1, 1, size], init)?),
            positions: weights.by_row("position_embeddings", &[1, places, size], init)?,
            weight: projection.by_row("weight", &grid.kernel(size), init)?,
            bias: Some(projection.by_row("bias", &[size], Init::Const(0.))?),
        })
    }

    /// Under the names of CLIP, whose convolution has no bias.
    pub(super) fn build_clip(weights: &Weights, grid: Grid, shape: &BlockShape) -> Result<Self> {
        let (size, init) = (shape.size, shape.init());
        let places = 1 + grid.side().pow(2);
        Ok(Patches {
            grid,
            weight: weights.by_row("patch_embedding.weight", &grid.kernel(size), init)?,
            bias: None,
            class: Some(weights.by_row("class_embedding", &[size], init)?),
            positions: weights.by_row("position_embedding.weight", &[places, size], init)?,
        })
    }

    /// Under the names of SigLIP, which has no class token.
    pub(super) fn build_siglip(weights: &Weights, grid: Grid, shape: &BlockShape) -> Result<Self> {
        let (size, init) = (shape.size, shape.init());
        let places = grid.side().pow(2);
        Ok(Patches {
            grid,
            weight: weights.by_row("patch_embedding.weight", &grid.kernel(size), init)?,
            bias: Some(weights.by_row("patch_embedding.bias", &[size], Init::Const(0.))?),
            class: None,
            positions: weights.by_row("position_embedding.weight", &[places, size], init)?,
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.weight.kind()
    }

    /// Images `[batch, channels, height, width]` to `[batch, places, size]`, with these positions added.
    pub(super) fn forward(&self, images: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let (bias, class) = (self.bias.as_ref(), self.class.as_ref());
        let embedded = match Rows::with_own([Some(&self.weight), bias, class]) {
            Some(rows) => {
                rows.grouped(images, [Some(&self.weight), bias, class], |images, adapter| {
                    let own = |x: Option<&Tensor>| x.map(|x| rows.of(x, adapter)).transpose();
                    let weight = rows.of(&self.weight, adapter)?;
                    self.embedded(images, &weight, own(bias)?.as_ref(), own(class)?.as_ref())
                })?
            }
            None => self.embedded(images, &self.weight, bias, class)?,
        };
        Ok(embedded.f_add(positions)?)
    }

    fn embedded(
        &self,
        images: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        class: Option<&Tensor>,
    ) -> Result<Tensor> {
        let stride = [self.grid.patch_size; 2];
        let patches = images.f_conv2d(weight, bias, stride, [0, 0], [1, 1], 1)?;
        let patches = patches.f_flatten(2, 3)?.f_transpose(1, 2)?;
        let Some(class) = class else { return Ok(patches) };
        let class = class.f_view([1, 1, -1])?.f_expand([images.size()[0], -1, -1], false)?;
        Ok(Tensor::f_cat(&[class, patches], 1)?)
    }

    /// The position embeddings of these numbers, `[images, patches]`.
    pub(super) fn positions_at(&self, numbers: &Tensor) -> Result<Tensor> {
        let found = |table: &Tensor, numbers: &Tensor| {
            Ok(Tensor::f_embedding(table, numbers, -1, false, false)?)
        };
        match Rows::with_own([Some(&self.positions)]) {
            Some(rows) => rows.grouped(numbers, [Some(&self.positions)], |numbers, adapter| {
                found(&rows.of(&self.positions, adapter)?, numbers)
            }),
            None => found(&self.positions, numbers),
        }
    }

    /// The positions of images of this shape, interpolated where it is not that of the configuration: `[1, places, size]`
    /// or, where images have their own, `[images, places, size]`.
    pub(super) fn positions_for(&self, images: &Tensor) -> Result<Tensor> {
        let grid = self.grid.rows_and_columns(images)?;
        match Rows::with_own([Some(&self.positions)]) {
            Some(rows) => rows.of_each(images, |adapter| {
                Ok(self.fitted(&rows.of(&self.positions, adapter)?, grid)?.f_squeeze_dim(0)?)
            }),
            None => self.fitted(&self.positions, grid),
        }
    }

    /// `[1, places, size]`
    fn fitted(&self, positions: &Tensor, (rows, columns): (i64, i64)) -> Result<Tensor> {
        let (side, size) = (self.grid.side(), self.weight.size()[0]);
        let positions = positions.f_view([1, -1, size])?;
        if (rows, columns) == (side, side) {
            return Ok(positions);
        }
        let first = i64::from(self.class.is_some());
        let patches = positions.f_narrow(1, first, side * side)?.f_view([1, side, side, size])?;
        let patches = patches.f_permute([0, 3, 1, 2])?.f_to_kind(Kind::Float)?;
        let patches = patches.f_upsample_bicubic2d([rows, columns], false, None, None)?;
        let patches = patches.f_to_kind(positions.f_kind()?)?;
        let patches = patches.f_permute([0, 2, 3, 1])?.f_reshape([1, rows * columns, size])?;
        Ok(Tensor::f_cat(&[&positions.f_narrow(1, 0, first)?, &patches], 1)?)
    }
}
