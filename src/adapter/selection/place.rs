//! The place of a norm in its network: before a linear layer, behind one, on queries and keys, at an end.

use serde::{Deserialize, Serialize};

use super::architectures::{has_norms, is_named};
use super::layers::layer_of;
use super::tree::Tree;

/// The place of a norm in its network. Places have rates and weight decays of their own
/// ([`Optimizer::set_weight_decay_norms`](crate::Optimizer::set_weight_decay_norms)): decay helps norms before linear
/// layers and harms those behind (arXiv 2605.26895). In settings: `pre`, `post`, `qk`, `final` or `embeddings`.
///
/// For a known `model_type` it follows from a table. For others, a norm outside of numbered layers is `Final`, or
/// `Embeddings` if `embed` is in its path or its name is `ln_pre` (OpenAI's CLIP and open_clip) or `norm_pre` (timm).
/// In a layer it is `Qk` by names such as `q_norm`, `Post` if its name begins with `post` or if no norm stands behind
/// the last layer, as in networks that norm their sums; else `Pre`. Without numbered layers every norm is `Pre`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NormPlace {
    /// Before attention or an MLP.
    Pre,
    /// Behind attention or an MLP: on what they give, or on the sum with it.
    Post,
    /// On queries or keys.
    Qk,
    /// Behind the last layer, or in a head.
    Final,
    /// On embeddings, before the first layer.
    Embeddings,
}

impl NormPlace {
    /// Every place, in the order of their names in settings.
    pub const ALL: [NormPlace; 5] =
        [NormPlace::Pre, NormPlace::Post, NormPlace::Qk, NormPlace::Final, NormPlace::Embeddings];

    /// The name in settings.
    pub fn name(self) -> &'static str {
        ["pre", "post", "qk", "final", "embeddings"][self as usize]
    }
}

/// Norms in the layers of these model types that stand behind attention or an MLP; all others stand before.
#[rustfmt::skip]
const POST: &[(&str, &str)] = &[
    ("gemma2 gemma3_text gemma3 olmo2 olmo3 exaone4", "post_attention_layernorm post_feedforward_layernorm"),
    ("glm4", "post_self_attn_layernorm post_mlp_layernorm"),
    ("bert electra deberta deberta-v2 roberta xlm-roberta camembert mpnet longformer blip-2", "LayerNorm"),
    ("distilbert", "sa_layer_norm output_layer_norm"),
    ("albert", "LayerNorm full_layer_layer_norm"),
    ("bart marian blenderbot-small", "self_attn_layer_norm encoder_attn_layer_norm final_layer_norm"),
    // In their base sizes; others are for those who name them.
    ("wav2vec2 hubert", "layer_norm final_layer_norm"),
    // On what a linear layer gives, as with queries and keys.
    ("jamba", "b_layernorm c_layernorm"),
];

/// Norms outside of layers that are neither behind the last one nor have `embed` in their path.
#[rustfmt::skip]
const ELSEWHERE: &[(&str, &str, NormPlace)] = &[
    ("clip clip_vision_model llava llava_next llava_next_video llava_onevision vipllava video_llava", "pre_layrnorm", NormPlace::Embeddings),
    // Of a tower that passes its patches on.
    ("mistral3 llava", "vision_tower.ln_pre", NormPlace::Embeddings),
    ("mistral3", "multi_modal_projector.norm", NormPlace::Pre),
    ("internvl", "multi_modal_projector.layer_norm", NormPlace::Pre),
    ("qwen2_vl qwen2_5_vl", "visual.merger.ln_q", NormPlace::Pre),
    ("qwen3_vl qwen3_vl_moe", "visual.merger.norm", NormPlace::Pre),
    // Of the relative positions, and of the convolution beside the first layer.
    ("deberta-v2", "encoder.LayerNorm", NormPlace::Embeddings),
    ("deberta-v2", "conv.LayerNorm", NormPlace::Post),
    ("blip-2", "qformer.layernorm", NormPlace::Embeddings),
    ("wav2vec2 hubert", "feature_projection.layer_norm", NormPlace::Pre),
    ("gemma3", "mm_soft_emb_norm", NormPlace::Pre),
];

/// Norms between the embeddings and the first layer, in models that no `model_type` names.
const FIRST: [&str; 4] = ["ln_pre", "norm_pre", "pre_layernorm", "pre_layrnorm"];

const QK: [&str; 10] = [
    "q_norm",
    "k_norm",
    "q_layernorm",
    "k_layernorm",
    "q_layer_norm",
    "k_layer_norm",
    "q_ln",
    "k_ln",
    "query_norm",
    "key_norm",
];

/// The places of a model's norms.
pub(super) struct Places<'t> {
    tree: &'t Tree<'t>,
    model_type: Option<&'t str>,
    /// Some norm is in a numbered layer, and some stands behind the last.
    layered: bool,
    ended: bool,
}

impl<'t> Places<'t> {
    pub(super) fn of(tree: &'t Tree<'t>, model_type: Option<&'t str>) -> Self {
        let norms = || tree.paths().filter(|path| tree.is_norm(path));
        let layered = norms().any(|path| layer_of(path).is_some());
        let is_first = |path: &str| FIRST.contains(&path.rsplit('.').next().unwrap_or(path));
        let before = |path: &str| is_of_embeddings(path) || is_first(path);
        let ended = norms().any(|path| layer_of(path).is_none() && !before(path));
        Places { tree, model_type, layered, ended }
    }

    /// The place of the norm at `path`; `None` for a module that is no norm.
    pub(super) fn place(&self, path: &str) -> Option<NormPlace> {
        let segments: Vec<&str> = path.split('.').collect();
        if segments.iter().rev().take(3).any(|name| QK.contains(name)) {
            return Some(NormPlace::Qk);
        }
        let last = segments.last().copied().unwrap_or_default();
        let known = self.model_type.filter(|model_type| has_norms(model_type));
        let named = known.is_some_and(|model_type| is_named(model_type, path));
        if !named && !self.tree.is_norm(path) {
            return None;
        }
        let of = |types: &str| known.is_some_and(|known| types.split(' ').any(|t| t == known));
        let ends = |name: &str| path == name || path.ends_with(&format!(".{name}"));
        if let Some((.., place)) = ELSEWHERE.iter().find(|(types, name, _)| of(types) && ends(name))
        {
            return Some(*place);
        }
        let is_first = || known.is_none() && layer_of(path).is_none() && FIRST.contains(&last);
        if is_of_embeddings(path) || is_first() {
            return Some(NormPlace::Embeddings);
        }
        if layer_of(path).is_none() {
            return Some(if self.layered { NormPlace::Final } else { NormPlace::Pre });
        }
        let is_behind = match POST.iter().find(|(types, _)| of(types)) {
            Some((_, names)) => names.split(' ').any(|name| name == last),
            None => {
                // The smallest size of opt norms the sums, and has no norm behind the last layer.
                let may_norm_sums = known.is_none_or(|known| known == "opt");
                (may_norm_sums && !self.ended) || self.begins_with_post(path, last)
            }
        };
        Some(if is_behind { NormPlace::Post } else { NormPlace::Pre })
    }

    /// `post_attention_layernorm` stands before the MLP, unless another norm stands behind it.
    fn begins_with_post(&self, path: &str, last: &str) -> bool {
        if last != "post_attention_layernorm" {
            return last.starts_with("post");
        }
        let layer = &path[..path.len() - last.len()];
        ["post_feedforward_layernorm", "post_mlp_layernorm"]
            .iter()
            .any(|other| self.tree.tensors(&format!("{layer}{other}")).next().is_some())
    }
}

fn is_of_embeddings(path: &str) -> bool {
    path.to_ascii_lowercase().contains("embed")
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::storage::info::VariableInfo;

    fn places(model_type: Option<&str>, paths: &[&str]) -> Vec<&'static str> {
        let variable = |path: &&str| VariableInfo {
            name: format!("{path}.weight"),
            shape: vec![4],
            kind: Kind::Float,
            is_parameter: true,
        };
        let variables: Vec<VariableInfo> = paths.iter().map(variable).collect();
        let tree = Tree::of(&variables);
        let places = Places::of(&tree, model_type);
        let name = |path: &&str| places.place(path).map_or("", NormPlace::name);
        paths.iter().map(name).collect()
    }

    #[test]
    fn models_of_unknown_type_have_the_places_that_their_names_and_ends_say() {
        let pre = [
            "embed.norm",
            "h.0.ln1",
            "h.0.post_norm",
            "h.0.attn.q_norm.norms.1",
            "h.0.lin",
            "ln_f",
        ];
        let expected = ["embeddings", "pre", "post", "qk", "", "final"];
        assert_eq!(places(None, &pre), expected);
        // Without a norm behind the last layer, norms stand on the sums.
        assert_eq!(places(Some("mine"), &["h.0.ln1", "h.1.ln1"]), ["post", "post"]);
        // Without layers there is no telling.
        assert_eq!(places(None, &["norm", "up"]), ["pre", ""]);
        // A list of norms is no layer.
        assert_eq!(places(None, &["norms.0", "norms.1"]), ["pre", "pre"]);
        let llama = ["h.0.input_layernorm", "h.0.post_attention_layernorm", "norm"];
        assert_eq!(places(None, &llama), ["pre", "pre", "final"]);
        // OpenAI's CLIP and open_clip: transformers has other names, and no model_type for these.
        let clip = [
            "visual.ln_pre",
            "visual.transformer.resblocks.0.ln_1",
            "visual.transformer.resblocks.0.ln_2",
            "visual.ln_post",
            "transformer.resblocks.0.ln_1",
            "ln_final",
        ];
        assert_eq!(places(None, &clip), ["embeddings", "pre", "pre", "final", "pre", "final"]);
        let timm = ["visual.trunk.norm_pre", "visual.trunk.blocks.0.norm1", "visual.trunk.norm"];
        assert_eq!(places(None, &timm), ["embeddings", "pre", "final"]);
        let gemma = ["h.0.post_attention_layernorm", "h.0.post_feedforward_layernorm", "norm"];
        assert_eq!(places(None, &gemma), ["post", "post", "final"]);
    }
}
