//! The connector: from the tower's hidden states to embeddings of the language model.

use tch::nn::Init;
use tch::Tensor;

use super::projector::{Projector, ProjectorConfig};
use crate::error::Result;
use crate::models::nn::Weights;

#[derive(Debug)]
pub(super) enum Connector {
    Projector(Projector),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum ConnectorConfig {
    Projector(ProjectorConfig),
}

impl ConnectorConfig {
    /// The number of embeddings that it makes of so many places.
    pub(super) fn tokens(&self, places: i64) -> i64 {
        match self {
            ConnectorConfig::Projector(_) => places,
        }
    }
}

impl Connector {
    pub(super) fn build(weights: &Weights, config: &ConnectorConfig, init: Init) -> Result<Self> {
        match config {
            ConnectorConfig::Projector(config) => {
                Ok(Connector::Projector(Projector::build(weights, config, init)?))
            }
        }
    }

    /// `[images, places, width]` to `[images, tokens, size]`.
    pub(super) fn forward(&self, features: &Tensor) -> Result<Tensor> {
        match self {
            Connector::Projector(projector) => projector.forward(features),
        }
    }
}
