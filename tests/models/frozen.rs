//! A base that is kept in few bits computes what one with the same values in memory computes.

use std::collections::HashMap;
use std::path::Path;

use crate::{nets, sizes};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{
    AnyModel, Decoder, DecoderConfig, Form, Frozen, GenerateOptions, Inputs, Load, Model,
    ModelConfig, Place,
};
use ln_tuning::pretrained::{self, ModelFiles};
use ln_tuning::recompute::{Blocks, Recompute};
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel, Optimizer};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

const FORMS: [Form; 2] = [Form::Int8, Form::Nf4];

fn load(form: Form) -> Load {
    Load::on(Device::Cpu).frozen(Frozen::default().form(form))
}

/// Rows of 96 and of 50 weights: the groups of nf4 end inside them.
fn decoder(model_type: &str, more: Value) -> TempDir {
    tch::set_num_threads(1);
    let mut config = json!({
        "model_type": model_type, "hidden_size": 96, "intermediate_size": 50, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 71, "max_position_embeddings": 64,
        "n_embd": 96, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "head_dim": 24, "query_pre_attn_scalar": 24, "rms_norm_eps": 1e-5, "layer_norm_eps": 1e-5,
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    let vs = VarStore::new(Device::Cpu);
    Decoder::new(&vs.root(), &DecoderConfig::from_value(&config).unwrap()).unwrap();
    nets::fill(&vs, 0.1);
    let dir = tempfile::tempdir().unwrap();
    pretrained::save(&vs, dir.path(), &config.to_string()).unwrap();
    dir
}

/// Families with fused, grouped and turned matrices, with tied heads and with their own.
fn families() -> [(&'static str, Value); 6] {
    [
        ("llama", json!({})),
        ("gemma2", json!({"final_logit_softcapping": 2.0, "sliding_window": 5})),
        ("gpt2", json!({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})),
        ("gpt_neox", json!({})),
        ("phi3", json!({"pad_token_id": 0})),
        ("cohere", json!({"logit_scale": 0.5})),
    ]
}

fn ids() -> Tensor {
    let index = Tensor::arange(2 * 11, (Kind::Int64, Device::Cpu)) + 1;
    (index.square() * 29 + index * 7).remainder(71).view([2, 11])
}

/// The same values in memory: what is kept is saved with its values, and opened as numbers.
fn same_in_memory(vs: &VarStore, from: &Path) -> (TempDir, VarStore, Decoder) {
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    pretrained::save(vs, dir.path(), &config).unwrap();
    let (vs, model) = Decoder::from_pretrained(dir.path(), Device::Cpu, None).unwrap();
    (dir, vs, model)
}

/// The loss of a step, and the gradients of all norms.
fn step(
    model: &Decoder,
    optimizer: &mut Optimizer,
    inputs: Inputs,
    recomputed: bool,
) -> (f64, HashMap<String, Tensor>) {
    step_through(model, optimizer, inputs, recomputed.then_some(Blocks::All))
}

/// [`step`] through a tape that runs these blocks again; `None`: without one.
fn step_through(
    model: &Decoder,
    optimizer: &mut Optimizer,
    inputs: Inputs,
    again: Option<Blocks>,
) -> (f64, HashMap<String, Tensor>) {
    let labels = ids();
    let cross_entropy = LinearCrossEntropy::default();
    optimizer.zero_grad().unwrap();
    let loss = if let Some(blocks) = again {
        let recompute = Recompute::new(blocks);
        optimizer
            .backward_recompute(&recompute, |tape| {
                model.loss_with(inputs, &labels, &cross_entropy, tape)
            })
            .unwrap()
    } else {
        let loss = model.loss(inputs, &labels, &cross_entropy).unwrap();
        optimizer.backward(&loss).unwrap();
        loss
    };
    let gradients = optimizer.gradients().unwrap().into_iter();
    let gradients = gradients.map(|(name, gradient)| (name, gradient.unwrap().copy()));
    (loss.double_value(&[]), gradients.collect())
}

/// The largest distance, in shares of the largest of `expected`.
fn off(found: &Tensor, expected: &Tensor) -> f64 {
    let scale = expected.abs().max().double_value(&[]);
    assert!(scale > 0.);
    (found - expected).abs().max().double_value(&[]) / scale
}

fn check_steps(vs: &VarStore, model: &Decoder, dir: &Path, tolerance: f64, about: &str) {
    let (_dir, same_vs, same) = same_in_memory(vs, dir);
    let tuned = LnTuningModel::new(vs, LnTuningConfig::default()).unwrap();
    let other = LnTuningModel::new(&same_vs, LnTuningConfig::default()).unwrap();
    let mut optimizers = [&tuned, &other].map(|t| t.optimizer(AdamW::default(), 1e-3).unwrap());
    let ids = ids();
    let documents = Tensor::from_slice2(&[
        [0_i64, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1],
    ]);
    let mask = Tensor::ones([2, 11], (Kind::Int64, Device::Cpu));
    let _ = mask.narrow(1, 0, 4).get(1).fill_(0);
    for inputs in [
        Inputs::new(&ids),
        Inputs::new(&ids).attention_mask(&mask),
        Inputs::new(&ids).documents(Some(&documents)),
    ] {
        for recomputed in [false, true] {
            let [own, its] = &mut optimizers;
            let (loss, gradients) = step(model, own, inputs, recomputed);
            let (expected, others) = step(&same, its, inputs, recomputed);
            assert!((loss - expected).abs() <= tolerance * expected, "{about}: {loss}, {expected}");
            assert_eq!(gradients.len(), others.len());
            for (name, expected) in &others {
                let off = off(&gradients[name], expected);
                assert!(off <= tolerance, "{about}, recomputed: {recomputed}: {name} is {off} off");
            }
        }
    }
}

/// The blocks of a GGUF file give the losses and the gradients of their values. True if it has blocks.
pub(super) fn check_blocks_of(file: &Path, ids: &Tensor) -> bool {
    let wanted = Load::on(Device::Cpu).kind(Kind::Float);
    let frozen = Frozen::default().form(Form::Gguf);
    let (vs, model) = Decoder::from_pretrained_with(file, &wanted.clone().frozen(frozen)).unwrap();
    let (same_vs, same) = Decoder::from_pretrained_with(file, &wanted).unwrap();
    let kinds: Vec<Kind> = vs.variables().values().map(Tensor::kind).collect();
    let kept = kinds.iter().filter(|kind| **kind == Kind::Uint8).count();
    let gradients = |vs: &VarStore, model: &Decoder| {
        let Ok(tuned) = LnTuningModel::new(vs, LnTuningConfig::default()) else {
            // The norms of OLMo have no weights.
            return model.loss(ids, ids, &LinearCrossEntropy::default()).unwrap().view([1]);
        };
        let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
        let loss = optimizer.backward_recompute(&Recompute::default(), |tape| {
            model.loss_with(ids, ids, &LinearCrossEntropy::default(), tape)
        });
        let gradients = optimizer.gradients().unwrap().into_iter();
        let gradients = gradients.map(|(_, gradient)| gradient.unwrap().copy().view([-1]));
        let all: Vec<Tensor> = [loss.unwrap().view([1])].into_iter().chain(gradients).collect();
        Tensor::cat(&all, 0)
    };
    let off = off(&gradients(&vs, &model), &gradients(&same_vs, &same));
    assert!(off <= 1e-5, "{file:?}: {off} off");
    kept > 0
}

#[test]
fn losses_and_gradients_are_those_of_the_same_values_in_memory() {
    for (family, more) in families() {
        let dir = decoder(family, more);
        for form in FORMS {
            let (vs, model) = Decoder::from_pretrained_with(dir.path(), &load(form)).unwrap();
            let layer = vs
                .variables()
                .into_iter()
                .find(|(name, _)| name.contains("0.mlp") && name.ends_with("weight"));
            assert_eq!(layer.unwrap().1.kind(), Kind::Uint8);
            assert_eq!(model.kind(), Kind::Float);
            check_steps(&vs, &model, dir.path(), 1e-5, &format!("{family}, {form:?}"));
        }
    }
}

/// A graph that keeps activations reads values that are computed again, in memory that all blocks share.
#[test]
fn gradients_are_those_of_a_plain_graph_bit_for_bit_whatever_blocks_are_run_again() {
    for (family, more) in families() {
        let dir = decoder(family, more);
        let (vs, model) = Decoder::from_pretrained_with(dir.path(), &load(Form::Nf4)).unwrap();
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
        let ids = ids();
        let mut step = |again| step_through(&model, &mut optimizer, Inputs::new(&ids), again);
        let expected = step(None);
        for blocks in [Blocks::First(0), Blocks::First(1), Blocks::EveryNth(2)] {
            assert_eq!(step(Some(blocks)), expected, "{family}, {blocks:?}");
        }
    }
}

#[test]
fn in_bf16_they_differ_by_the_rounding_of_the_head_alone() {
    let dir = decoder("llama", json!({"tie_word_embeddings": true}));
    for form in FORMS {
        let load = load(form).kind(Kind::BFloat16);
        let (vs, model) = Decoder::from_pretrained_with(dir.path(), &load).unwrap();
        assert_eq!(model.kind(), Kind::BFloat16);
        check_steps(&vs, &model, dir.path(), 2e-2, &format!("{form:?}"));
    }
}

#[test]
fn generated_tokens_are_those_of_the_same_values_in_memory() {
    let options = GenerateOptions::default().max_new_tokens(6);
    for (family, more) in families() {
        let dir = decoder(family, more);
        for form in FORMS {
            let (vs, model) = Decoder::from_pretrained_with(dir.path(), &load(form)).unwrap();
            let (_dir, _same_vs, same) = same_in_memory(&vs, dir.path());
            let new = model.generate(&ids(), &options).unwrap();
            assert_eq!(new, same.generate(&ids(), &options).unwrap(), "{family}, {form:?}");
            let (found, expected) = (model.logits(&ids()).unwrap(), same.logits(&ids()).unwrap());
            assert!(off(&found, &expected) <= 1e-5, "{family}, {form:?}");
        }
    }
}

#[test]
fn every_model_is_kept_in_each_form_and_place() {
    tch::set_num_threads(1);
    let root = tempfile::tempdir().unwrap();
    for (model_type, config) in sizes::models(root.path()) {
        let dir = root.path().join(model_type);
        let run = |dir: &Path, frozen: Frozen| {
            let files = ModelFiles::open(dir).unwrap();
            let load = Load::on(Device::Cpu).frozen(frozen);
            let (vs, model) = AnyModel::from_files(files, &load).unwrap();
            let ids = Tensor::from_slice2(&[[3_i64, 4, 5, 6]]);
            let images = nets::noise(&[1, 3, 8, 8], 1);
            let hidden = model.hidden_states(sizes::inputs(&model, &ids, &images)).unwrap();
            (vs, hidden)
        };
        let (_, plain) = run(&dir, Frozen::default());
        for place in [Place::Device, Place::Streamed] {
            let (_, found) = run(&dir, Frozen::default().place(place));
            assert_eq!(found, plain, "{model_type}: {place:?}");
        }
        for (form, place) in [(Form::Int8, Place::Device), (Form::Nf4, Place::Mapped)] {
            let (vs, found) = run(&dir, Frozen::default().form(form).place(place));
            let kinds: Vec<Kind> = vs.variables().values().map(Tensor::kind).collect();
            let kept = kinds.iter().filter(|kind| **kind == Kind::Uint8).count();
            assert!(kept >= 8, "{model_type}: {kept} matrices");
            let same = tempfile::tempdir().unwrap();
            pretrained::save(&vs, same.path(), &config.to_string()).unwrap();
            let (_, expected) = run(same.path(), Frozen::default());
            let off = off(&found, &expected);
            assert!(off <= 1e-5, "{model_type}: {form:?}, {place:?}: {off} off");
        }
    }
}

#[test]
fn adapters_are_attached_trained_switched_merged_and_saved_beside_such_a_base() {
    let dir = decoder("llama", json!({}));
    let (vs, model) = Decoder::from_pretrained_with(dir.path(), &load(Form::Nf4)).unwrap();
    let (plain_vs, _) = Decoder::from_pretrained(dir.path(), Device::Cpu, None).unwrap();
    let before = model.logits(&ids()).unwrap();
    let mut tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
    let plain = LnTuningModel::new(&plain_vs, LnTuningConfig::default()).unwrap();
    assert_eq!(tuned.trainable_parameters(), plain.trainable_parameters());
    assert_eq!(model.logits(&ids()).unwrap(), before);
    let mut optimizer = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    let mut losses = Vec::new();
    for _ in 0..4 {
        losses.push(step(&model, &mut optimizer, Inputs::new(&ids()), true).0);
        optimizer.step().unwrap();
    }
    assert!(losses[3] < losses[0] - 1e-3, "{losses:?}");
    let trained = model.logits(&ids()).unwrap();
    let saved = tempfile::tempdir().unwrap();
    tuned.save_pretrained(saved.path()).unwrap();
    tuned.merge_adapter("default").unwrap();
    assert!(off(&model.logits(&ids()).unwrap(), &trained) < 1e-6);
    tuned.unmerge_adapter().unwrap();
    tuned.load_adapter(saved.path(), "again", &Default::default()).unwrap();
    tuned.set_adapter("again").unwrap();
    assert_eq!(model.logits(&ids()).unwrap(), trained);
    tuned.unload().unwrap();
    assert_eq!(model.logits(&ids()).unwrap(), before);
}

#[test]
fn a_matrix_in_few_bits_is_not_trained_and_the_error_names_it_and_the_cure() {
    for (more, tied) in [(json!({}), false), (json!({"tie_word_embeddings": true}), true)] {
        let dir = decoder("llama", more);
        for frozen in [Frozen::default().form(Form::Int8), Frozen::default().place(Place::Streamed)]
        {
            let wanted = Load::on(Device::Cpu).frozen(frozen);
            let (vs, model) = Decoder::from_pretrained_with(dir.path(), &wanted).unwrap();
            let before = model.logits(&ids()).unwrap();
            let head = LnTuningConfig::default().modules_to_save(["lm_head"]);
            let layer = LnTuningConfig::default().target_modules(["mlp.up_proj"]);
            let mut refused = vec![(layer, "'model.layers.0.mlp.up_proj.weight'")];
            if frozen.is_quantised() {
                refused.push((head, "'lm_head.weight'"));
            }
            for (config, name) in refused {
                let error = LnTuningModel::new(&vs, config).map(drop).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                let text = error.to_string();
                assert!(text.contains(name) && text.contains("base: mapped"), "{tied}: {text}");
                assert_eq!(model.logits(&ids()).unwrap(), before);
            }
        }
    }
}

#[test]
fn what_cannot_be_kept_is_refused_by_name() {
    let dir = decoder("llama", json!({}));
    let error = Decoder::from_pretrained_with(dir.path(), &load(Form::Gguf)).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("holds no blocks of GGUF"), "{error}");

    let (vs, _model) = Decoder::from_pretrained(dir.path(), Device::Cpu, None).unwrap();
    let name = "model.layers.1.self_attn.o_proj.weight";
    let _ = tch::no_grad(|| vs.variables()[name].get(1).get(2).fill_(f64::INFINITY));
    let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    pretrained::save(&vs, dir.path(), &config).unwrap();
    for form in FORMS {
        let error = Decoder::from_pretrained_with(dir.path(), &load(form)).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NonFinite);
        assert!(error.to_string().contains(&format!("'{name}'")), "{error}");
    }

    // T5 leaves some layers in f32 where it is in f16; and what f16 cannot hold is told when it is loaded.
    let root = tempfile::tempdir().unwrap();
    sizes::models(root.path());
    let half = load(Form::Int8).kind(Kind::Half);
    let error = AnyModel::from_files(ModelFiles::open(root.path().join("t5")).unwrap(), &half);
    assert_eq!(error.map(drop).unwrap_err().kind(), ErrorKind::Unsupported);
    let dir = decoder("llama", json!({}));
    let (vs, _model) = Decoder::from_pretrained(dir.path(), Device::Cpu, None).unwrap();
    let _ = tch::no_grad(|| vs.variables()[name].get(1).get(2).fill_(1e6));
    pretrained::save(&vs, dir.path(), &config).unwrap();
    let error = Decoder::from_pretrained_with(dir.path(), &half).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NonFinite);
    assert!(error.to_string().contains(&format!("'{name}'")), "{error}");

    let dir = decoder("llama", json!({}));
    let streamed = Load::on(Device::Cpu).frozen(Frozen::default().place(Place::Streamed));
    for load in [load(Form::Int8), streamed] {
        let (mut vs, model) = Decoder::from_pretrained_with(dir.path(), &load).unwrap();
        vs.set_kind(Kind::Half);
        let error = model.logits(&ids()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::KindMismatch);
        assert!(error.to_string().contains("cast after loading"), "{error}");
    }
}
