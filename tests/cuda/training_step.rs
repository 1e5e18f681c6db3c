//! One training step: it waits for the device nowhere, whatever the model, the inputs and the way to train.

use ln_tuning::device::{best_device, set_deterministic};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{
    Clip, Decoder, Dinov2, Encoder, ImageTextToText, Inputs, Model, ModelConfig, Seq2Seq,
    ViTForImageClassification,
};
use ln_tuning::recompute::Recompute;
use ln_tuning::{
    AdamW, AdapterOptions, DynamicLossScale, LnTuningConfig, LnTuningModel, Optimizer, Precision,
};
use serde_json::{json, Value};
use tch::nn::{Sgd, VarStore};
use tch::{Cuda, Device, Kind, Tensor};

use crate::counting::{self, Counts, Gpu};

const KINDS: [Kind; 3] = [Kind::BFloat16, Kind::Half, Kind::Float];

const DECODERS: [&str; 21] = [
    "bloom",
    "cohere",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "gptj",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "stablelm",
    "starcoder2",
];

/// One object of all keys of both.
fn with(base: &Value, more: Value) -> Value {
    let mut config = base.clone();
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

pub(crate) fn decoders() -> Vec<Value> {
    // Every family reads what it knows.
    let base = json!({
        "vocab_size": 40, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 64, "rotary_dim": 8, "ffn_dim": 64,
        "word_embed_proj_dim": 64, "head_dim": 16, "hidden_act": "silu", "sliding_window": 4,
        "use_sliding_window": true, "max_window_layers": 1, "pad_token_id": 0,
    });
    let mut all: Vec<Value> = DECODERS.map(|family| json!({"model_type": family})).into();
    let short = json!({"rope_type": "yarn", "factor": 2., "original_max_position_embeddings": 32});
    all.push(json!({"model_type": "llama", "rope_scaling": short}));
    let dynamic = json!({"rope_type": "dynamic", "factor": 2.});
    all.push(json!({"model_type": "llama", "rope_scaling": dynamic}));
    all.push(json!({"model_type": "falcon", "alibi": true}));
    all.into_iter().map(|more| with(&base, more)).collect()
}

/// A copy that waits for nothing.
pub(crate) fn sent(tensor: &Tensor, device: Device) -> Tensor {
    let pinned = tensor.f_internal_pin_memory(device).unwrap();
    pinned.to_device_(device, tensor.kind(), true, false)
}

/// A model of this configuration and kind, on the device.
pub(crate) fn built<M: Model>(config: &Value, kind: Kind, device: Device) -> (VarStore, M) {
    let mut vs = VarStore::new(device);
    vs.set_kind(kind);
    let config = M::Config::from_value(config).unwrap();
    let model = M::new(&vs.root(), &config).unwrap();
    (vs, model)
}

/// Takes the step twice, and counts the second: the first one makes what is kept.
fn waits_for_nothing(what: &str, mut step: impl FnMut() -> ln_tuning::Result<()>) -> Counts {
    for _ in 0..2 {
        counting::reset();
        step().unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    let counts = counting::counts();
    let found = (counts.synchronisations, counts.pageable_copies, counts.copies_back);
    assert_eq!(found, (0, 0, 0), "{what}: {:?}", counts.calls);
    counts
}

/// Attention without a fused kernel would multiply in f32, in batches.
fn in_own_kind(what: &str, counts: &Counts, kind: Kind) {
    let products = counts.calls_with("SgemmStridedBatched");
    assert!(kind == Kind::Float || products == 0, "{what}, {kind:?}: {products} products in f32");
}

pub(crate) fn step(optimizer: &mut Optimizer, loss: &Tensor) -> ln_tuning::Result<()> {
    optimizer.zero_grad()?;
    optimizer.backward(loss)?;
    let _ = optimizer.clip_grad_norm(1.)?;
    optimizer.step()
}

#[test]
fn of_a_decoder() {
    Gpu::default().run(|| {
        let device = best_device();
        let documents =
            Tensor::from_slice2(&[[0_i64, 0, 0, 1, 1, 1, 2, 2, -1], [0, 0, 0, 0, 1, 1, 1, 1, 1]]);
        let ids = Tensor::arange(18, (Kind::Int64, Device::Cpu)).view([2, 9]).remainder(20) + 3;
        let labels = ids.masked_fill(&documents.eq(2), -100);
        let mask = sent(&documents.ge(1), device);
        let [ids, documents] = [ids, documents].map(|tensor| sent(&tensor, device));
        let loss = LinearCrossEntropy::default();
        // Each in one kind: what waits does so in any.
        for (config, kind) in decoders().iter().zip(KINDS.iter().copied().cycle()) {
            let (vs, model) = built::<Decoder>(config, kind, device);
            let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
            let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
            if kind == Kind::Half {
                optimizer.set_dynamic_loss_scale(DynamicLossScale::default()).unwrap();
            }
            let all = Inputs::new(&ids).train(true);
            for (form, inputs, labels) in [
                ("plain", all, &labels),
                ("labels on the device", all, &ids),
                ("padded", all.attention_mask(&mask), &labels),
                ("packed", all.documents(&documents), &labels),
                ("packed, labels on the device", all.documents(&documents), &ids),
            ] {
                let what = format!("{form}, {kind:?}, {config}");
                let counts = waits_for_nothing(&what, || {
                    step(&mut optimizer, &model.loss(inputs, labels, &loss)?)
                });
                in_own_kind(&what, &counts, kind);
            }
            waits_for_nothing(&format!("recomputed, {kind:?}, {config}"), || {
                optimizer.zero_grad()?;
                let _ = optimizer.backward_recompute(&Recompute::default(), |tape| {
                    model.loss_with(all, &labels, &loss, tape)
                })?;
                let _ = optimizer.clip_grad_norm(1.)?;
                optimizer.step()
            });
        }
    });
}

#[test]
fn with_any_settings_of_the_optimizer_and_the_loss() {
    Gpu::default().run(|| {
        let device = best_device();
        let labels = Tensor::arange(18, (Kind::Int64, Device::Cpu)).view([2, 9]);
        let ids = sent(&labels, device);
        let config = decoders().into_iter().find(|c| c["model_type"] == "llama").unwrap();
        for kind in KINDS {
            let (vs, model) = built::<Decoder>(&config, kind, device);
            let plain = LinearCrossEntropy::default();
            let loss = |loss: &LinearCrossEntropy| model.loss(&ids, &labels, loss);
            for precision in [Precision::Master, Precision::Model] {
                let options = AdapterOptions::default().precision(precision);
                let config = LnTuningConfig::default();
                let tuned = LnTuningModel::with_options(&vs, config, "default", &options).unwrap();
                let mut adamw = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
                let what = |what: &str| format!("{what}, {kind:?}, {precision:?}");
                waits_for_nothing(&what("clipped by value"), || {
                    adamw.backward_step_clip(&loss(&plain)?, 1.)
                });
                waits_for_nothing(&what("smoothed"), || {
                    adamw.backward_step(&loss(&plain.label_smoothing(0.1).z_loss(0.1))?)
                });
                adamw.set_accumulation(2).unwrap();
                waits_for_nothing(&what("accumulated"), || {
                    adamw.backward_step_clip_norm(&loss(&plain)?, 1.)?;
                    adamw.backward_step_clip_norm(&loss(&plain)?, 1.)
                });
                let amsgrad = AdamW { amsgrad: true, ..AdamW::default() };
                let mut amsgrad = tuned.optimizer(amsgrad, 1e-3).unwrap();
                amsgrad.set_loss_scale(1024.).unwrap();
                waits_for_nothing(&what("amsgrad"), || step(&mut amsgrad, &loss(&plain)?));
                let sgd = Sgd { momentum: 0.9, ..Sgd::default() };
                let mut sgd = tuned.optimizer(sgd, 1e-3).unwrap();
                sgd.set_dynamic_loss_scale(DynamicLossScale::default()).unwrap();
                waits_for_nothing(&what("SGD, dynamic"), || step(&mut sgd, &loss(&plain)?));
                // libtorch reads this for each product, which takes time while it is there.
                let workspace = || std::env::var_os("CUBLAS_WORKSPACE_CONFIG");
                let own = workspace();
                set_deterministic(true).unwrap();
                assert!(workspace().is_some());
                let _ =
                    waits_for_nothing(&what("deterministic"), || step(&mut sgd, &loss(&plain)?));
                set_deterministic(false).unwrap();
                assert_eq!(workspace(), own);
            }
        }
    });
}

#[test]
fn of_encoders_encoder_decoders_and_vision_models() {
    Gpu::default().run(|| {
        let device = best_device();
        Cuda::set_user_enabled_cudnn(false); // the runtime has none
        let mask = sent(&Tensor::from_slice2(&[[0_i64, 0, 1, 1, 1], [1, 1, 1, 1, 1]]), device);
        let ids = sent(&Tensor::from_slice2(&[[2_i64, 3, 4, 5, 6], [7, 8, 9, 3, 2]]), device);
        let base = json!({
            "vocab_size": 40, "hidden_size": 32, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64,
            "type_vocab_size": 2, "pad_token_id": 0, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "d_model": 32,
            "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "num_decoder_layers": 2, "encoder_layers": 2,
            "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48, "decoder_start_token_id": 0, "relative_attention_num_buckets": 8,
            "image_size": 32, "patch_size": 8, "num_channels": 3, "mlp_ratio": 2,
        });
        for kind in KINDS {
            for (family, name) in [
                ("bert", "Bert"),
                ("roberta", "Roberta"),
                ("xlm-roberta", "XLMRoberta"),
                ("distilbert", "DistilBert"),
            ] {
                for head in ["ForSequenceClassification", "ForMaskedLM", "ForTokenClassification"] {
                    let class = format!("{name}{head}");
                    let more = json!({"model_type": family, "architectures": [class]});
                    let (vs, model) = built::<Encoder>(&with(&base, more), kind, device);
                    let inputs = Inputs::new(&ids).attention_mask(&mask);
                    trains(&class, &vs, |tuned| model.logits(inputs.train(tuned)));
                }
            }
            for family in ["t5", "mt5", "bart"] {
                let more = json!({"model_type": family});
                let (vs, model) = built::<Seq2Seq>(&with(&base, more), kind, device);
                let inputs = Inputs::new(&ids).attention_mask(&mask);
                trains(family, &vs, |train| {
                    let decoder_ids = model.shift_right(&ids)?;
                    let inputs = inputs.decoder_ids(&decoder_ids).decoder_attention_mask(&mask);
                    model.logits(inputs.train(train))
                });
            }
            let images = Tensor::zeros([2, 3, 32, 32], (kind, device));
            let class = json!({"model_type": "vit", "architectures": ["ViTForImageClassification"]});
            let (vs, model) =
                built::<ViTForImageClassification>(&with(&base, class), kind, device);
            trains("vit", &vs, |train| model.logits(Inputs::images(&images).train(train)));
            let towers = json!({
                "model_type": "clip", "projection_dim": 16,
                "text_config": with(&base, json!({"eos_token_id": 9})), "vision_config": base.clone(),
            });
            let (vs, model) = built::<Clip>(&towers, kind, device);
            trains("clip", &vs, |train| {
                let texts = model.text_features(Inputs::new(&ids).train(train))?;
                let seen = model.image_features(Inputs::images(&images).train(train))?;
                model.logits_per_image(&seen, &texts)
            });
            let class = json!({"model_type": "dinov2"});
            let (vs, model) = built::<Dinov2>(&with(&base, class), kind, device);
            trains("dinov2", &vs, |train| {
                model.hidden_states(Inputs::images(&images).train(train))
            });
        }
    });
}

/// Those that see, whose ids are on the CPU: there the places of images are found.
#[test]
fn of_models_of_images_and_texts() {
    Gpu::default().run(|| {
        let device = best_device();
        Cuda::set_user_enabled_cudnn(false); // the runtime has none
        let text = json!({
            "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 4,
        });
        let vision = json!({
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 16, "patch_size": 8,
        });
        // Two images in a row, one, and none.
        let rows = [[3_i64, 1, 1, 1, 1, 1, 1, 1, 1, 4], [0, 0, 5, 1, 1, 1, 1, 6, 7, 8], [9; 10]];
        let ids = Tensor::from_slice2(&rows);
        let (labels, mask) = (ids.masked_fill(&ids.le(1), -100), ids.ge(1));
        let loss = LinearCrossEntropy::default();
        for ((family, kind), trained) in ["llava", "gemma3"]
            .into_iter()
            .flat_map(|family| KINDS.map(|kind| (family, kind)))
            .flat_map(|case| [(case, "norm"), (case, "projector|norm"), (case, "language_model.*norm")])
        {
            let config = json!({
                "model_type": family, "image_token_id": 1, "image_token_index": 1, "mm_tokens_per_image": 4,
                "text_config": text, "vision_config": vision,
            });
            let (vs, model) = built::<ImageTextToText>(&config, kind, device);
            let config = LnTuningConfig::default().target_pattern(format!(".*({trained}).*"));
            let tuned = LnTuningModel::new(&vs, config).unwrap();
            let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
            let images = Tensor::zeros([3, 3, 16, 16], (kind, device));
            let inputs = Inputs::new(&ids).attention_mask(&mask).pixel_values(&images).train(true);
            let what = format!("{family}, {kind:?}, {trained}");
            let counts = waits_for_nothing(&what, || {
                step(&mut optimizer, &model.loss(inputs, &labels, &loss)?)
            });
            in_own_kind(&what, &counts, kind);
            waits_for_nothing(&format!("{what}, recomputed"), || {
                optimizer.zero_grad()?;
                let _ = optimizer.backward_recompute(&Recompute::default(), |tape| {
                    model.loss_with(inputs, &labels, &loss, tape)
                })?;
                optimizer.step()
            });
        }
    });
}

/// A step with the sum of what `forward` gives for a loss waits for nothing.
fn trains(what: &str, vs: &VarStore, forward: impl Fn(bool) -> ln_tuning::Result<Tensor>) {
    let tuned = LnTuningModel::new(vs, LnTuningConfig::default()).unwrap();
    let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
    let kind = vs.variables().values().next().unwrap().kind();
    let counts = waits_for_nothing(&format!("{what}, {kind:?}"), || {
        step(&mut optimizer, &forward(true)?.sum(Kind::Float))
    });
    in_own_kind(what, &counts, kind);
}
