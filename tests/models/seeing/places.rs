//! Rates by the places of norms, in all parts of a model.

use std::collections::BTreeSet;

use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::{AdamW, AdapterOptions, LnTuningConfig, LnTuningModel, NormPlace, Norms};
use tch::Tensor;

use super::{images, inputs, open};

#[test]
fn a_rate_for_a_place_moves_the_norms_there_in_every_part_and_no_others() {
    let text = ["input_layernorm", "post_attention_layernorm"];
    let tower = ["layer_norm1", "layer_norm2"];
    let qwen =
        ["norm1", "norm2", "visual.merger.norm", "visual.merger.ln_q", "deepstack_merger_list"];
    let gemma = ["input_layernorm", "pre_feedforward_layernorm", "mm_soft_emb_norm"];
    let behind = ["post_attention_layernorm", "post_feedforward_layernorm"];
    let last = ["language_model.norm", "text_model.norm", "post_layernorm"];
    for (case, place, parts) in [
        ("gemma3", NormPlace::Pre, [&gemma[..], &tower].concat()),
        ("gemma3", NormPlace::Post, behind.to_vec()),
        ("gemma3", NormPlace::Qk, vec!["q_norm", "k_norm"]),
        ("gemma3", NormPlace::Final, last.to_vec()),
        ("idefics3", NormPlace::Pre, [&text[..], &tower].concat()),
        ("idefics3", NormPlace::Final, last.to_vec()),
        ("qwen2_5_vl", NormPlace::Pre, [&text[..], &qwen].concat()),
        ("qwen3_vl", NormPlace::Pre, [&text[..], &qwen].concat()),
        ("qwen3_vl", NormPlace::Qk, vec!["q_norm", "k_norm"]),
    ] {
        let (vs, model, reference) = open(case);
        let options = AdapterOptions::default().norms(Norms::All);
        let config = LnTuningConfig::default();
        let tuned = LnTuningModel::with_options(&vs, config, "default", &options).unwrap();
        let names = tuned.layer_status().into_iter().map(|layer| layer.name);
        let expected: BTreeSet<String> = names
            .filter(|name| {
                parts.iter().any(|part| format!(".{name}.").contains(&format!(".{part}.")))
            })
            .collect();
        let before: Vec<(String, Tensor)> =
            vs.variables().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
        let mut opt = tuned.optimizer(AdamW::default(), 0.).unwrap();
        opt.set_lr_norms(place, 0.1).unwrap();
        let batch = inputs(&reference, "left", images(&reference, "left"));
        let labels = &reference["left.labels"];
        let loss = model.loss(batch, labels, &LinearCrossEntropy::default()).unwrap();
        opt.backward_step(&loss).unwrap();
        let after = vs.variables();
        let moved = before.iter().filter(|(name, tensor)| !after[name].equal(tensor));
        let moved: BTreeSet<String> = moved
            .map(|(name, _)| name.rsplit_once('.').map_or("", |(module, _)| module).to_owned())
            .collect();
        assert_eq!(moved, expected, "{case} {place:?}");
        assert!(moved.len() >= 2, "{case} {place:?}");
    }
}
