//! Gemma 3's connector: means of neighbours, a norm, one matrix.

use serde_json::Value;
use tch::nn::Init;
use tch::Tensor;

use crate::error::{refuse, Result};
use crate::models::config::size_or;
use crate::models::decoder::DecoderConfig;
use crate::models::nn::{Norm, NormKind, Rows, Weights};
use crate::models::vision::ImageTowerConfig;

#[derive(Debug)]
pub(super) struct PooledProjector {
    config: PooledProjectorConfig,
    norm: Norm,
    /// `[width, size]`
    weight: Tensor,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct PooledProjectorConfig {
    /// Into it, and out of it.
    widths: (i64, i64),
    norm_eps: f64,
    /// The patches on each side of an image, and those on each side of a square that becomes one token.
    side: i64,
    kernel: i64,
}

impl PooledProjectorConfig {
    pub(super) fn read(
        config: &Value,
        tower: &ImageTowerConfig,
        decoder: &DecoderConfig,
    ) -> Result<Self> {
        let (side, tokens) = (tower.side(), size_or(config, "mm_tokens_per_image", 256)?);
        let kernel = side / (tokens as f64).sqrt() as i64;
        if kernel < 1 {
            refuse!(
                InvalidConfig,
                "'mm_tokens_per_image' is {tokens}, expected at most the patches of an image, {}",
                side * side
            );
        }
        let widths = (tower.width(), decoder.hidden_size());
        Ok(PooledProjectorConfig { widths, norm_eps: tower.norm_eps(), side, kernel })
    }

    /// The tokens of an image.
    pub(super) fn tokens(&self) -> i64 {
        (self.side / self.kernel).pow(2)
    }
}

impl PooledProjector {
    pub(super) fn build(weights: &Weights, config: &PooledProjectorConfig) -> Result<Self> {
        let (width, size) = config.widths;
        let norm = weights.at("mm_soft_emb_norm");
        Ok(PooledProjector {
            norm: Norm::build(&norm, NormKind::RmsFromOne, width, config.norm_eps)?,
            weight: weights.by_row(
                "mm_input_projection_weight",
                &[width, size],
                Init::Const(0.),
            )?,
            config: config.clone(),
        })
    }

    pub(super) fn forward(&self, features: &Tensor) -> Result<Tensor> {
        let PooledProjectorConfig { side, kernel, .. } = self.config;
        let (images, _, width) = features.size3()?;
        let square = features.f_transpose(1, 2)?.f_reshape([images, width, side, side])?;
        let kernel = [kernel; 2];
        let pooled = square.f_avg_pool2d(kernel, kernel, [0, 0], false, true, None)?;
        let pooled = pooled.f_flatten(2, 3)?.f_transpose(1, 2)?;
        let normed = self.norm.forward(&pooled)?;
        match Rows::with_own([Some(&self.weight)]) {
            Some(rows) => rows.grouped(&normed, [Some(&self.weight)], |normed, adapter| {
                Ok(normed.f_matmul(&rows.of(&self.weight, adapter)?)?)
            }),
            None => Ok(normed.f_matmul(&self.weight)?),
        }
    }
}
