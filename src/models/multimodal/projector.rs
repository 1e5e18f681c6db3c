//! LLaVA's connector: two linear layers on each place.

use serde_json::Value;
use tch::nn::Init;
use tch::Tensor;

use super::tower::Taken;
use crate::error::{refuse, Result};
use crate::models::config::{flag, text};
use crate::models::decoder::DecoderConfig;
use crate::models::nn::{Activation, Linear, Weights};
use crate::models::vision::ImageTowerConfig;

#[derive(Debug)]
pub(super) struct Projector {
    layers: [Linear; 2],
    activation: Activation,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct ProjectorConfig {
    /// Into it, and out of it.
    widths: (i64, i64),
    bias: bool,
    activation: Activation,
}

/// Reads what a LLaVA says of its connector, and of the hidden states that it takes.
pub(super) fn read(
    config: &Value,
    tower: &ImageTowerConfig,
    decoder: &DecoderConfig,
) -> Result<(Taken, ProjectorConfig)> {
    let without_first = match text(config, "vision_feature_select_strategy", "default")? {
        "default" => true,
        "full" => false,
        other => refuse!(
            InvalidConfig,
            "'vision_feature_select_strategy' is '{other}', expected 'default' or 'full'"
        ),
    };
    let taken = Taken::Behind { depths: depths(config, tower.layers())?, without_first };
    let (places, width) = taken.shape(tower);
    if places < 1 {
        refuse!(InvalidConfig, "the tower gives one hidden state, and 'default' leaves it out");
    }
    let projector = ProjectorConfig {
        widths: (width, decoder.hidden_size()),
        bias: flag(config, "multimodal_projector_bias", true)?,
        activation: Activation::named(
            text(config, "projector_hidden_act", "gelu")?,
            "projector_hidden_act",
        )?,
    };
    Ok((taken, projector))
}

/// `vision_feature_layer`, one or several, as numbers of blocks: those from the end are negative.
fn depths(config: &Value, layers: i64) -> Result<Vec<usize>> {
    let given = match config.get("vision_feature_layer") {
        None | Some(Value::Null) => vec![-2],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_i64).collect(),
        Some(one) => one.as_i64().into_iter().collect(),
    };
    let wanted = config.get("vision_feature_layer").unwrap_or(&Value::Null);
    let count = wanted.as_array().map_or(1, Vec::len);
    let depth = |layer: i64| if layer < 0 { layers + 1 + layer } else { layer };
    let depths = given.iter().map(|layer| depth(*layer));
    if given.is_empty()
        || given.len() < count
        || depths.clone().any(|at| !(0..=layers).contains(&at))
    {
        refuse!(
            InvalidConfig,
            "'vision_feature_layer' is {wanted}, expected one or several of {} to {layers}",
            -(layers + 1)
        );
    }
    Ok(depths.map(|at| at as usize).collect())
}

impl Projector {
    pub(super) fn build(weights: &Weights, config: &ProjectorConfig, init: Init) -> Result<Self> {
        let ProjectorConfig { widths: (from, to), bias, activation } = *config;
        let linear =
            |name: &str, from: i64| Linear::build_plain(&weights.at(name), (from, to), bias, init);
        Ok(Projector { layers: [linear("linear_1", from)?, linear("linear_2", to)?], activation })
    }

    pub(super) fn forward(&self, features: &Tensor) -> Result<Tensor> {
        let [first, second] = &self.layers;
        second.forward(&self.activation.apply(&first.forward(features)?)?)
    }
}
