//! Modules that get no gradient, because the model's output does not depend on them.

use serde_json::Value;

use super::layers::layer_of;
use super::targets::TOWERS;
use super::tree::Tree;
use crate::pretrained::Head;

/// A module that was left out of a selection, since it gets no gradient in this model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnusedModule {
    /// The path of the module.
    pub path: String,
    /// The reason, in words.
    pub reason: String,
}

/// Models that read hidden states of an image tower, and the layers if the configuration names none.
const STATES: &[(&str, &[i64])] = &[
    ("llava llava_next llava_next_video video_llava", &[-2]),
    ("llava_onevision aya_vision mistral3 internvl", &[-1]),
    ("vipllava", &[-2, -5, -8, -11, 6]),
];

/// The setting that names the layers, in its two spellings.
const LAYERS: [&str; 2] = ["vision_feature_layer", "vision_feature_layers"];

/// Models that read what an image tower gives for each patch, behind its last norm.
const PATCHES: &str = "gemma3 paligemma";

/// Classifiers that take the mean over the patches, and the modules that stand behind them.
const MEANS: &[(&str, &str)] = &[("clip", "post_layernorm"), ("siglip siglip2", "head")];

/// The part of its image tower that a model uses.
pub(super) enum Usage {
    All,
    /// The hidden states of some layers, by this setting: 0 is what goes into the first layer.
    States(&'static str, Vec<i64>),
    /// The output of its last layer, and so not these modules behind it.
    Without(&'static str),
}

impl Usage {
    pub(super) fn of(config: &Value, head: Head) -> Self {
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let is = |types: &str| types.split(' ').any(|known| known == model_type);
        if let Some((_, default)) = STATES.iter().find(|(types, _)| is(types)) {
            let set = LAYERS.iter().find(|key| config.get(**key).is_some_and(|v| !v.is_null()));
            let key = set.unwrap_or(&LAYERS[0]);
            let layers: Vec<i64> = match config.get(*key) {
                Some(Value::Array(layers)) => layers.iter().filter_map(Value::as_i64).collect(),
                Some(layer) => layer.as_i64().into_iter().collect(),
                None => Vec::new(),
            };
            let layers = if layers.is_empty() { default.to_vec() } else { layers };
            // For the last it takes the tower's output, behind its last norm.
            if model_type == "internvl" && layers == [-1] {
                return Usage::All;
            }
            return Usage::States(key, layers);
        }
        if is(PATCHES) {
            return Usage::Without("head");
        }
        let class = config.get("architectures").and_then(|classes| classes.get(0)?.as_str());
        let head = class.filter(|_| head == Head::Other).map_or(head, Head::of_class);
        let mean = MEANS.iter().find(|(types, _)| is(types) && head == Head::ImageClassification);
        mean.map_or(Usage::All, |(_, behind)| Usage::Without(behind))
    }

    /// The reason for which a module gets no gradient; `None` for one that gets one.
    pub(super) fn unused(&self, tree: &Tree, path: &str) -> Option<String> {
        let (mut start, mut tower) = (0, None);
        for segment in path.split('.') {
            start += segment.len() + 1;
            if TOWERS.contains(&segment) {
                tower = path.get(start..);
            }
        }
        let tower = tower?;
        let is_in = |module: &str| tower == module || tower.starts_with(&format!("{module}."));
        match self {
            Usage::All => None,
            Usage::Without(module) => is_in(module).then(|| {
                format!(
                    "the model reads the states of all patches, and '{module}' stands behind them"
                )
            }),
            Usage::States(key, layers) => {
                let shown = match &layers[..] {
                    [layer] => layer.to_string(),
                    layers => format!("{layers:?}"),
                };
                if let Some((stack, layer)) = layer_of(path) {
                    let numbers = tree.numbered(stack);
                    let last =
                        numbers.iter().filter_map(|number| number.parse::<i64>().ok()).max()?;
                    let read = |layer: i64| if layer < 0 { last + 2 + layer } else { layer };
                    let used = layers.iter().map(|layer| read(*layer)).max()?;
                    return (layer as i64 >= used).then(|| {
                        format!(
                            "`{key}` is {shown}, so of the {} layers of the image tower the model uses {used}",
                            last + 1
                        )
                    });
                }
                let behind = is_in("head") || is_in("post_layernorm") || is_in("layernorm");
                behind.then(|| {
                    format!("`{key}` is {shown}: the model reads hidden states, and not what stands behind the last layer")
                })
            }
        }
    }
}
