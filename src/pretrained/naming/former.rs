//! Former names of tensors: transformers 5 renames the tensors of some models while loading, and older files have the
//! former names.

use crate::error::Result;
use crate::names::substitution::Substitution;

/// Model types, and the renamings that transformers 5 applies in turn.
const RENAMINGS: &[(&str, &[(&str, &str)])] = &[
    (
        "vit deit beit vivit vit_mae vit_msn ijepa audio-spectrogram-transformer",
        &[
            (r"encoder\.layer\.", "layers."),
            (r"attention\.query", "q_proj"),
            (r"attention\.key", "k_proj"),
            (r"attention\.value", "v_proj"),
            (r"attention\.output\.dense", "attention.o_proj"),
            (r"intermediate\.dense", "mlp.fc1"),
            (r"output\.dense", "mlp.fc2"),
        ],
    ),
    (
        "swin",
        &[
            (r"attention\.self\.query", "attention.q_proj"),
            (r"attention\.self\.key", "attention.k_proj"),
            (r"attention\.self\.value", "attention.v_proj"),
            (r"attention\.output\.dense", "attention.o_proj"),
            (r"intermediate\.dense", "mlp.fc1"),
            (r"output\.dense", "mlp.fc2"),
        ],
    ),
    (
        "llava llava_next llava_next_video llava_onevision vipllava paligemma aya_vision got_ocr2 gemma3 internvl mistral3 aria",
        &[
            (r"^language_model\.lm_head", "lm_head"),
            (r"^language_model\.model", "language_model"),
            (r"^language_model", "model.language_model"),
            (r"^vision_tower", "model.vision_tower"),
            (r"^multi_modal_projector", "model.multi_modal_projector"),
            (r"^image_newline", "model.image_newline"),
            (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
        ],
    ),
    (
        "dinov2",
        &[
            (r"attention\.attention\.query", "attention.q_proj"),
            (r"attention\.attention\.key", "attention.k_proj"),
            (r"attention\.attention\.value", "attention.v_proj"),
            (r"attention\.output\.dense", "attention.o_proj"),
            (r"mlp\.weights_in\.", "mlp.gate_proj+up_proj."),
            (r"mlp\.weights_out\.", "mlp.down_proj."),
        ],
    ),
    ("gpt_neox", &[(r"^embed_out\.", "lm_head.")]),
    (
        "qwen2_vl qwen2_5_vl",
        &[
            (r"^visual", "model.visual"),
            (r"^model\.(?!language_model|visual)", "model.language_model."),
        ],
    ),
];

/// The names of the original BERT checkpoints, in any model.
const LEGACY: &[(&str, &str)] =
    &[(r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")];

/// The renamings of one model.
#[derive(Debug)]
pub(in crate::pretrained) struct Renaming(Vec<Substitution>);

impl Renaming {
    pub(in crate::pretrained) fn of(model_type: Option<&str>) -> Result<Self> {
        let known = |types: &str| types.split(' ').any(|t| Some(t) == model_type);
        let own = RENAMINGS.iter().filter(|(types, _)| known(types)).flat_map(|(_, rules)| *rules);
        let rules = LEGACY
            .iter()
            .chain(own)
            .map(|(from, to)| Substitution::new(from, to, "the table of renamings"));
        Ok(Renaming(rules.collect::<Result<_>>()?))
    }

    /// The name in memory of a tensor that is called `name` on disk; several names if it is split into several tensors.
    pub(in crate::pretrained) fn apply(&self, name: &str) -> Result<Vec<String>> {
        let name = self.renamed(name)?;
        // `module.one+other.weight`
        let Some((before, after)) = name.split_once('+') else { return Ok(vec![name]) };
        let (module, first) = before.rsplit_once('.').unwrap_or(("", before));
        let (second, last) = after.split_once('.').unwrap_or((after, ""));
        Ok([first, second].map(|part| format!("{module}.{part}.{last}")).to_vec())
    }

    /// The name after all renamings. A name in memory does not change.
    fn renamed(&self, name: &str) -> Result<String> {
        let mut name = name.to_owned();
        for rule in &self.0 {
            if let Some(renamed) = rule.apply(&name)? {
                name = renamed;
            }
        }
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn former_names_become_those_of_transformers_5_and_new_ones_stay() {
        let vit = Renaming::of(Some("vit")).unwrap();
        for (disk, memory) in [
            ("vit.encoder.layer.3.layernorm_before.weight", "vit.layers.3.layernorm_before.weight"),
            (
                "vit.encoder.layer.3.attention.attention.query.bias",
                "vit.layers.3.attention.q_proj.bias",
            ),
            (
                "vit.encoder.layer.3.attention.output.dense.bias",
                "vit.layers.3.attention.o_proj.bias",
            ),
            ("vit.encoder.layer.3.intermediate.dense.bias", "vit.layers.3.mlp.fc1.bias"),
            ("vit.encoder.layer.3.output.dense.bias", "vit.layers.3.mlp.fc2.bias"),
            ("classifier.weight", "classifier.weight"),
        ] {
            assert_eq!(vit.renamed(disk).unwrap(), memory);
            assert_eq!(vit.renamed(memory).unwrap(), memory);
        }
        let bert = Renaming::of(Some("bert")).unwrap();
        let name = "bert.encoder.layer.0.output.LayerNorm";
        assert_eq!(bert.renamed(&format!("{name}.gamma")).unwrap(), format!("{name}.weight"));
        assert_eq!(bert.renamed(&format!("{name}.beta")).unwrap(), format!("{name}.bias"));
    }

    #[test]
    fn a_tensor_may_be_two_in_memory() {
        let dinov2 = Renaming::of(Some("dinov2")).unwrap();
        let names = dinov2.apply("encoder.layer.0.mlp.weights_in.bias").unwrap();
        let [gate, up] = ["gate", "up"].map(|n| format!("encoder.layer.0.mlp.{n}_proj.bias"));
        assert_eq!(names, [gate, up]);
    }
}
