//! Idefics3's connector: the patches of a square side by side, one matrix.

use serde_json::Value;
use tch::nn::Init;
use tch::Tensor;

use crate::error::Result;
use crate::models::config::{check_divides, size_or};
use crate::models::decoder::DecoderConfig;
use crate::models::nn::{Linear, Weights};
use crate::models::vision::ImageTowerConfig;

#[derive(Debug)]
pub(super) struct PixelShuffle {
    config: PixelShuffleConfig,
    projection: Linear,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct PixelShuffleConfig {
    /// Into it, and out of it.
    widths: (i64, i64),
    /// The patches on each side of an image, and those on each side of a square that becomes one token.
    side: i64,
    factor: i64,
}

impl PixelShuffleConfig {
    pub(super) fn read(
        config: &Value,
        tower: &ImageTowerConfig,
        decoder: &DecoderConfig,
    ) -> Result<Self> {
        let (side, factor) = (tower.side(), size_or(config, "scale_factor", 2)?);
        check_divides(("scale_factor", factor), ("patches on each side of an image", side))?;
        Ok(PixelShuffleConfig { widths: (tower.width(), decoder.hidden_size()), side, factor })
    }

    /// The tokens of an image.
    pub(super) fn tokens(&self) -> i64 {
        (self.side / self.factor).pow(2)
    }
}

impl PixelShuffle {
    pub(super) fn build(
        weights: &Weights,
        config: &PixelShuffleConfig,
        init: Init,
    ) -> Result<Self> {
        let (width, size) = config.widths;
        let widths = (width * config.factor.pow(2), size);
        let weights = weights.at("modality_projection.proj");
        let projection = Linear::build_plain(&weights, widths, false, init)?;
        Ok(PixelShuffle { config: config.clone(), projection })
    }

    pub(super) fn forward(&self, features: &Tensor) -> Result<Tensor> {
        let PixelShuffleConfig { side, factor, .. } = self.config;
        let (images, _, width) = features.size3()?;
        let squares = side / factor;
        let apart = features.f_reshape([images, squares, factor, squares, factor, width])?;
        let together = apart.f_transpose(2, 3)?;
        let shape = [images, squares * squares, factor * factor * width];
        self.projection.forward(&together.f_reshape(shape)?)
    }
}
