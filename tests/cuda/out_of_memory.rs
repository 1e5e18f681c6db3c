//! Memory of the device that ends at whichever allocation: an error, no panic, after which the same goes well.

use ln_tuning::device::best_device;
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Clip, Decoder, Encoder, GenerateOptions, Inputs, Model, Seq2Seq};
use ln_tuning::recompute::Recompute;
use ln_tuning::{AdamW, DynamicLossScale, ErrorKind, LnTuningConfig, LnTuningModel, Result};
use serde_json::{json, Value};
use tch::{Device, Kind, Tensor};

use crate::counting::{self, Gpu};
use crate::training_step::{built, step};

/// Without a cache, so that each tensor asks the device.
const GPU: Gpu = Gpu { sm: 90, devices: 1, memory: 80 << 30, fill: Some(1), computes: false };

fn at_every_allocation(name: &str, mut work: impl FnMut() -> Result<()>) {
    // Tensors that are kept are made first.
    work().unwrap_or_else(|error| panic!("{name}: {error}"));
    for allocations in 0.. {
        counting::fail_after(Some(allocations));
        let result = work();
        counting::fail_after(None);
        match result {
            Ok(()) => return assert!(allocations > 0, "{name} allocates nothing"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{name}: {error}"),
        }
    }
}

fn config(family: &str, more: Value) -> Value {
    let mut config = json!({
        "model_type": family, "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "layer_norm_eps": 1e-5, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4,
        "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 0, "pad_token_id": 0,
        "hidden_act": "gelu", "type_vocab_size": 1, "image_size": 32, "patch_size": 8,
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

/// Ids, a mask with padding on the left, and documents.
fn texts() -> [Tensor; 3] {
    let rows = |first: [i64; 5]| Tensor::from_slice2(&[first, [1; 5]]).to_device(best_device());
    [rows([5, 6, 7, 8, 9]), rows([0, 0, 1, 1, 1]), rows([0, 0, 1, 1, 2])]
}

#[test]
fn in_a_decoder_is_an_error_at_every_allocation() {
    GPU.run(|| {
        let [ids, mask, documents] = texts();
        let labels = ids.to_device(Device::Cpu);
        let entropy = LinearCrossEntropy::default().label_smoothing(0.1).z_loss(0.1);
        let dynamic = json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.}});
        let alibi = json!({"alibi": true, "new_decoder_architecture": true});
        for config in [config("llama", dynamic), config("falcon", alibi)] {
            let (vs, model) = built::<Decoder>(&config, Kind::BFloat16, best_device());
            let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
            let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
            let scale = DynamicLossScale::default();
            at_every_allocation("a loss scale", || optimizer.set_dynamic_loss_scale(scale));
            let all = Inputs::new(&ids).train(true);
            at_every_allocation("a padded step", || {
                let loss = model.loss(all.attention_mask(&mask), &ids, &entropy)?;
                step(&mut optimizer, &loss)
            });
            if config["model_type"] == "falcon" {
                continue; // what follows has nothing of its own there
            }
            at_every_allocation("a packed step, recomputed", || {
                let recompute = Recompute::default();
                let packed = all.documents(&documents);
                let loss = optimizer.backward_recompute(&recompute, |tape| {
                    model.loss_with(packed, &labels, &entropy, tape)
                });
                loss.map(drop)
            });
            let drawn = GenerateOptions::default().temperature(0.8).top_k(5).top_p(0.9);
            let options = drawn.repetition_penalty(1.3).stop_tokens([39]).max_new_tokens(2);
            at_every_allocation("generation", || {
                model.generate(Inputs::new(&ids).attention_mask(&mask), &options).map(drop)
            });
        }
    });
}

#[test]
fn in_other_models_is_an_error_at_every_allocation() {
    GPU.run(|| {
        let [ids, mask, _] = texts();
        let (kind, device) = (Kind::Half, best_device());
        let inputs = Inputs::new(&ids).attention_mask(&mask);
        for (family, more) in [("t5", json!({})), ("bart", json!({"forced_eos_token_id": 2}))] {
            let (_vs, model) = built::<Seq2Seq>(&config(family, more), kind, device);
            at_every_allocation(family, || {
                let decoder_ids = model.shift_right(&ids)?;
                model.logits(inputs.decoder_ids(&decoder_ids)).map(drop)
            });
            let options = GenerateOptions::default().max_new_tokens(2);
            at_every_allocation(family, || model.generate(inputs, &options).map(drop));
        }
        let class = json!({"architectures": ["RobertaForSequenceClassification"]});
        let (_vs, model) = built::<Encoder>(&config("roberta", class), kind, device);
        at_every_allocation("roberta", || model.logits(inputs).map(drop));
        let class = json!({"architectures": ["LlamaForSequenceClassification"]});
        let (_vs, model) = built::<Decoder>(&config("llama", class), kind, device);
        at_every_allocation("a classifier", || model.logits(inputs).map(drop));
        let (text, vision) =
            (config("clip_text_model", json!({"eos_token_id": 9})), config("clip", json!({})));
        let towers = json!({"text_config": text, "vision_config": vision, "projection_dim": 16});
        let (_vs, model) = built::<Clip>(&config("clip", towers), kind, device);
        at_every_allocation("clip", || {
            let texts = model.text_features(inputs)?;
            model.logits_per_image(&texts, &texts).map(drop)
        });
    });
}
