//! The tower for images: one of the vision models, below a larger model.

use serde_json::Value;
use tch::Tensor;

use crate::autograd::recompute::Tape;
use crate::error::{refuse, Result};
use crate::models::config::ModelConfig;
use crate::models::model::Model;
use crate::models::nn::Weights;
use crate::models::vision::{ClipVision, ClipVisionConfig};

#[derive(Debug)]
pub(super) enum Tower {
    Clip(Box<ClipVision>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum TowerConfig {
    Clip(ClipVisionConfig),
}

/// The hidden states of the tower that the connector takes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Taken {
    /// Those behind so many blocks each, side by side; without those of the first place perhaps.
    Behind { depths: Vec<usize>, without_first: bool },
}

impl TowerConfig {
    /// Reads the configuration of a tower, by its `model_type`.
    pub(super) fn read(config: &Value) -> Result<Self> {
        match config.get("model_type").and_then(Value::as_str).unwrap_or_default() {
            "clip_vision_model" => Ok(TowerConfig::Clip(ClipVisionConfig::from_value(config)?)),
            other => refuse!(
                Unsupported,
                "the tower for images has the model_type '{other}', expected clip_vision_model"
            ),
        }
    }

    /// The number of hidden states of an image, and their width.
    pub(super) fn shape(&self) -> (i64, i64) {
        match self {
            TowerConfig::Clip(config) => (config.places(), config.width()),
        }
    }

    pub(super) fn layers(&self) -> i64 {
        match self {
            TowerConfig::Clip(config) => config.layers(),
        }
    }

    /// The number of places of an image that the connector takes, and their width.
    pub(super) fn taken(&self, taken: &Taken) -> (i64, i64) {
        let (places, width) = self.shape();
        match taken {
            Taken::Behind { depths, without_first } => {
                (places - i64::from(*without_first), width * depths.len() as i64)
            }
        }
    }
}

impl Tower {
    pub(super) fn build(weights: &Weights, config: &TowerConfig) -> Result<Self> {
        match config {
            TowerConfig::Clip(config) => {
                Ok(Tower::Clip(Box::new(ClipVision::build(weights, config)?)))
            }
        }
    }

    /// Images `[images, channels, height, width]` to what the connector takes, `[images, places, width]`.
    pub(super) fn forward<'m>(
        &'m self,
        images: &Tensor,
        taken: &Taken,
        train: bool,
        tape: &mut Tape<'m>,
    ) -> Result<Tensor> {
        match taken {
            Taken::Behind { depths, without_first } => {
                let Tower::Clip(tower) = self;
                let states = tower.hidden_states_at(images, depths, train, tape)?;
                let kept = |states: Tensor| -> Result<Tensor> {
                    let first = i64::from(*without_first);
                    Ok(states.f_narrow(1, first, states.size3()?.1 - first)?)
                };
                let states = states.into_iter().map(kept).collect::<Result<Vec<_>>>()?;
                Ok(Tensor::f_cat(&states, -1)?)
            }
        }
    }
}
