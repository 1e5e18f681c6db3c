//! The connector: from the tower's hidden states to embeddings of the language model.

use tch::nn::Init;
use tch::Tensor;

use super::mergers::{Mergers, MergersConfig};
use super::pixel_shuffle::{PixelShuffle, PixelShuffleConfig};
use super::pooled_projector::{PooledProjector, PooledProjectorConfig};
use super::projector::{Projector, ProjectorConfig};
use crate::error::Result;
use crate::models::nn::Weights;

#[derive(Debug)]
pub(super) enum Connector {
    Projector(Projector),
    Pooled(PooledProjector),
    Shuffle(PixelShuffle),
    Mergers(Mergers),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum ConnectorConfig {
    Projector(ProjectorConfig),
    Pooled(PooledProjectorConfig),
    Shuffle(PixelShuffleConfig),
    Mergers(MergersConfig),
}

impl ConnectorConfig {
    /// The number of embeddings that it makes of so many places; 0 where images are of any size.
    pub(super) fn tokens(&self, places: i64) -> i64 {
        match self {
            ConnectorConfig::Projector(_) => places,
            ConnectorConfig::Pooled(config) => config.tokens(),
            ConnectorConfig::Shuffle(config) => config.tokens(),
            ConnectorConfig::Mergers(_) => 0,
        }
    }
}

impl Connector {
    pub(super) fn build(weights: &Weights, config: &ConnectorConfig, init: Init) -> Result<Self> {
        Ok(match config {
            ConnectorConfig::Projector(config) => {
                Connector::Projector(Projector::build(weights, config, init)?)
            }
            ConnectorConfig::Pooled(config) => {
                Connector::Pooled(PooledProjector::build(weights, config)?)
            }
            ConnectorConfig::Shuffle(config) => {
                Connector::Shuffle(PixelShuffle::build(weights, config, init)?)
            }
            ConnectorConfig::Mergers(config) => {
                Connector::Mergers(Mergers::build(weights, config, init)?)
            }
        })
    }

    /// `[images, places, width]` to `[images, tokens, size]`; and to those that are added to what the first blocks of
    /// the language model give.
    pub(super) fn forward(&self, features: &Tensor) -> Result<Vec<Tensor>> {
        Ok(vec![match self {
            Connector::Projector(projector) => projector.forward(features)?,
            Connector::Pooled(projector) => projector.forward(features)?,
            Connector::Shuffle(shuffle) => shuffle.forward(features)?,
            Connector::Mergers(mergers) => return mergers.forward(features),
        }])
    }
}
