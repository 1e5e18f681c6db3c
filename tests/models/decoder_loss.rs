//! The loss of decoders is the cross-entropy of their logits, however it is computed.

use std::collections::HashMap;

use crate::nets;
use ln_tuning::loss::{LinearCrossEntropy, Reduction};
use ln_tuning::models::{Decoder, DecoderConfig, Inputs, Model, ModelConfig};
use ln_tuning::recompute::{Blocks, Recompute};
use ln_tuning::{AdamW, DynamicLossScale, ErrorKind, LnTuningConfig, LnTuningModel};
use serde_json::{json, Value};
use tch::{nn::VarStore, Device, Kind, Tensor};

const VOCAB: i64 = 64;

fn config(model_type: &str, more: Value) -> DecoderConfig {
    let mut config = json!({
        "model_type": model_type, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": VOCAB, "max_position_embeddings": 64,
        "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5, "rms_norm_eps": 1e-5, "layer_norm_eps": 1e-5,
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    DecoderConfig::from_value(&config).unwrap()
}

fn model(config: &DecoderConfig) -> (VarStore, Decoder) {
    tch::set_num_threads(1);
    let vs = VarStore::new(Device::Cpu);
    let model = Decoder::new(&vs.root(), config).unwrap();
    nets::fill(&vs, 0.2);
    (vs, model)
}

/// Ids that follow no pattern.
fn ids(rows: i64) -> Tensor {
    let index = Tensor::arange(rows * 11, (Kind::Int64, Device::Cpu)) + 1;
    (index.square() * 29 + index * 7).remainder(VOCAB).view([rows, 11])
}

/// Ids, and labels of which some are no target.
fn batch() -> (Tensor, Tensor) {
    let ids = ids(2);
    let labels = ids.copy();
    let _ = labels.narrow(1, 0, 4).get(0).fill_(-100);
    let _ = labels.narrow(1, 9, 2).get(1).fill_(-100);
    (ids, labels)
}

/// As transformers computes it from logits.
fn plain(logits: &Tensor, labels: &Tensor) -> Tensor {
    let places = labels.size()[1] - 1;
    let logits = logits.narrow(1, 0, places).reshape([-1, VOCAB]).to_kind(Kind::Float);
    let labels = labels.narrow(1, 1, places).reshape([-1]);
    logits.cross_entropy_loss::<Tensor>(&labels, None, tch::Reduction::Mean, -100, 0.)
}

fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let scale = expected.abs().max().double_value(&[]);
    let off = (found - expected).abs().max().double_value(&[]);
    assert!(scale > 0. && off <= 1e-5 * scale.max(1.), "{what}: {off} off, of {scale}");
}

/// The gradients of the variables that train, by name.
fn gradients(vs: &VarStore, loss: &Tensor) -> HashMap<String, Tensor> {
    let variables = vs.variables().into_iter().filter(|(_, variable)| variable.requires_grad());
    let (names, variables): (Vec<_>, Vec<_>) = variables.unzip();
    let found = Tensor::run_backward(&[loss], &variables, false, false);
    names.into_iter().zip(found).collect()
}

fn families() -> [(&'static str, Value); 6] {
    [
        ("llama", json!({})),
        ("llama", json!({"tie_word_embeddings": true})),
        ("gemma2", json!({"final_logit_softcapping": 2.0, "tie_word_embeddings": true})),
        ("granite", json!({"logits_scaling": 3.0})),
        ("cohere", json!({"logit_scale": 0.5})),
        ("phi", json!({})),
    ]
}

#[test]
fn values_and_gradients_are_those_of_cross_entropy_on_logits() {
    for (family, more) in families() {
        let (vs, model) = model(&config(family, more.clone()));
        let (ids, labels) = batch();
        let expected = plain(&model.logits(&ids).unwrap(), &labels);
        let loss = model.loss(&ids, &labels, &LinearCrossEntropy::default()).unwrap();
        assert_close(&loss, &expected, family);
        let (found, expected) = (gradients(&vs, &loss), gradients(&vs, &expected));
        assert!(found.len() > 20, "all variables train, head and embedding among them");
        for (name, expected) in &expected {
            // Keys' biases have no gradient: a softmax does not see them.
            if expected.abs().max().double_value(&[]) > 1e-6 {
                assert_close(&found[name], expected, &format!("{family}, {more}: {name}"));
            }
        }
    }
}

#[test]
fn checkpointing_changes_neither_loss_nor_training() {
    for (family, more) in families() {
        let config = config(family, more);
        let train = |blocks: Option<Blocks>| {
            let (vs, model) = model(&config);
            let (ids, labels) = batch();
            let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
            let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
            let cross_entropy = LinearCrossEntropy::default();
            let mut losses = Vec::new();
            for _ in 0..4 {
                let loss = match blocks {
                    None => {
                        let loss = model.loss(&ids, &labels, &cross_entropy).unwrap();
                        opt.backward_step(&loss).unwrap();
                        loss
                    }
                    Some(blocks) => {
                        opt.zero_grad().unwrap();
                        let recompute = Recompute::new(blocks);
                        let loss = opt.backward_with(|inputs| {
                            recompute.gradients(inputs, |tape| {
                                model.loss_with(&ids, &labels, &cross_entropy, tape)
                            })
                        });
                        opt.step().unwrap();
                        loss.unwrap()
                    }
                };
                losses.push(loss.double_value(&[]));
            }
            losses
        };
        let expected = train(None);
        assert!(expected[3] < expected[0] - 1e-3, "{family}: {expected:?}");
        for blocks in [Blocks::All, Blocks::EveryNth(2)] {
            for (found, expected) in train(Some(blocks)).iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-4, "{family}: {found} {expected}");
            }
        }
    }
}

/// Batches of several lengths: plain, padded on the left, packed. With their labels.
fn step_of_three() -> Vec<[Tensor; 4]> {
    let none = || Tensor::new();
    let (plain, labels) = batch();
    let padded = ids(2).narrow(1, 2, 7);
    let mask = Tensor::ones([2, 7], (Kind::Int64, Device::Cpu));
    let _ = mask.narrow(1, 0, 3).get(0).fill_(0);
    let of_padded = padded.masked_fill(&mask.eq(0), -100);
    let packed = ids(1) + 1;
    let packed = packed.remainder(VOCAB);
    let documents = Tensor::from_slice2(&[[0_i64, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]]);
    vec![
        [plain, labels, none(), none()],
        [padded, of_padded, mask, none()],
        [packed.shallow_clone(), packed, none(), documents],
    ]
}

fn some(tensor: &Tensor) -> Option<&Tensor> {
    tensor.defined().then_some(tensor)
}

#[test]
fn batches_that_go_through_each_block_together_train_as_one_after_the_other_bit_for_bit() {
    for (family, more) in families() {
        for blocks in [Blocks::All, Blocks::EveryNth(2), Blocks::First(1), Blocks::First(0)] {
            let train = |together: bool| {
                let (vs, model) = model(&config(family, more.clone()));
                let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
                let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
                opt.set_dynamic_loss_scale(DynamicLossScale::default()).unwrap();
                let batches = step_of_three();
                let batches: Vec<(Inputs, &Tensor)> = batches
                    .iter()
                    .map(|[ids, labels, mask, documents]| {
                        let inputs = Inputs::new(ids).attention_mask(some(mask));
                        (inputs.documents(some(documents)), labels)
                    })
                    .collect();
                let cross_entropy = LinearCrossEntropy::default().reduction(Reduction::SumOver(40));
                let recompute = Recompute::new(blocks);
                let mut all = Vec::new();
                for _ in 0..2 {
                    opt.zero_grad().unwrap();
                    let losses = if together {
                        opt.backward_recompute_many(&recompute, |tape| {
                            model.losses_with(&batches, &cross_entropy, tape)
                        })
                        .unwrap()
                    } else {
                        let one = |(inputs, labels): &(Inputs, &Tensor)| {
                            opt.backward_recompute(&recompute, |tape| {
                                model.loss_with(*inputs, labels, &cross_entropy, tape)
                            })
                            .unwrap()
                        };
                        batches.iter().map(one).collect()
                    };
                    all.push(format!("{:?}", opt.clip_grad_norm(0.5).unwrap()));
                    all.extend(losses.iter().map(|loss| loss.double_value(&[]).to_string()));
                    opt.step().unwrap();
                }
                (all, nets::named_bits(&tuned.state_dict("default").unwrap()))
            };
            let (found, expected) = (train(true), train(false));
            assert!(found == expected, "{family}, {more}, {blocks:?}: {found:?} {expected:?}");
        }
    }
}

#[test]
fn in_bf16_the_gradients_of_batches_that_go_together_are_summed_in_f32() {
    let gradients = |together: bool| {
        let (mut vs, model) = model(&config("llama", json!({})));
        vs.bfloat16();
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
        let (ids, labels) = batch();
        let cross_entropy = LinearCrossEntropy::default();
        let recompute = Recompute::default();
        let batches: Vec<(Inputs, &Tensor)> = vec![((&ids).into(), &labels); 5];
        if together {
            opt.backward_recompute_many(&recompute, |tape| {
                model.losses_with(&batches, &cross_entropy, tape)
            })
            .unwrap();
        } else {
            for (inputs, labels) in &batches {
                let loss = opt.backward_recompute(&recompute, |tape| {
                    model.loss_with(*inputs, labels, &cross_entropy, tape)
                });
                assert!(loss.is_ok());
            }
        }
        let gradients = opt.gradients().unwrap();
        gradients.into_iter().map(|(name, gradient)| (name, gradient.unwrap())).collect::<Vec<_>>()
    };
    for ((name, found), (_, expected)) in gradients(true).iter().zip(gradients(false)) {
        assert_eq!(found, &expected, "{name}");
    }
}

#[test]
fn a_head_in_modules_to_save_trains() {
    let (vs, model) = model(&config("llama", json!({})));
    let (ids, labels) = batch();
    let config = LnTuningConfig::default().modules_to_save(["lm_head"]);
    let tuned = LnTuningModel::new(&vs, config).unwrap();
    let before = vs.variables()["lm_head.weight"].copy();
    let expected = plain(&model.logits(&ids).unwrap(), &labels);
    let loss = model.loss(&ids, &labels, &LinearCrossEntropy::default()).unwrap();
    let head = [vs.variables()["lm_head.weight"].shallow_clone()];
    let found = Tensor::run_backward(&[&loss], &head, true, false);
    assert_close(&found[0], &Tensor::run_backward(&[&expected], &head, false, false)[0], "head");
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    opt.backward_step(&loss).unwrap();
    let moved = (&vs.variables()["lm_head.weight"] - before).abs().max().double_value(&[]);
    assert!(moved > 1e-3);
}

#[test]
fn packed_documents_lose_as_much_as_separate_ones() {
    let (vs, model) = model(&config("llama", json!({})));
    let ids = ids(1);
    let documents = Tensor::from_slice2(&[[0_i64, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]]);
    let cross_entropy = LinearCrossEntropy::default();
    let packed = model.loss(Inputs::new(&ids).documents(&documents), &ids, &cross_entropy).unwrap();
    let mut sum = Tensor::from(0_f32);
    for (start, length) in [(0, 4), (4, 3), (7, 4)] {
        let ids = ids.narrow(1, start, length);
        sum += model.loss(&ids, &ids, &cross_entropy).unwrap() * (length - 1) as f64;
    }
    let separate = sum / 8.;
    assert_close(&packed, &separate, "loss");
    let (found, expected) = (gradients(&vs, &packed), gradients(&vs, &separate));
    let norm = "model.layers.0.input_layernorm.weight";
    assert_close(&found[norm], &expected[norm], norm);
}

#[test]
fn the_last_norm_alone_gets_its_gradient() {
    let (vs, model) = model(&config("llama", json!({})));
    let (ids, labels) = batch();
    let only_last = LnTuningConfig::default().target_modules(["model.norm"]);
    let _tuned = LnTuningModel::new(&vs, only_last).unwrap();
    let expected = gradients(&vs, &plain(&model.logits(&ids).unwrap(), &labels));
    assert_eq!(expected.keys().collect::<Vec<_>>(), ["model.norm.weight"]);
    let loss = LinearCrossEntropy::default();
    let norm = [vs.variables()["model.norm.weight"].shallow_clone()];
    let found = Recompute::default()
        .gradients(&norm, |tape| model.loss_with(&ids, &labels, &loss, tape))
        .unwrap();
    assert_close(&found.1[0], &expected["model.norm.weight"], "norm");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let (_vs, model) = model(&config("llama", json!({})));
    let (ids, labels) = batch();
    let loss = LinearCrossEntropy::default();
    let error = model.loss(&ids, &labels.narrow(1, 0, 5), &loss).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
    let error = model.loss(&ids, &labels, &loss.logit_cap(30.)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}
