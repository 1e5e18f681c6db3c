//! Models of images and texts with a tower of SigLIP compute what transformers computes, forwards and backwards.

mod files;
mod places;
mod refusals;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::common;
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{
    AnyModel, GenerateOptions, ImageTextToText, ImageTextToTextConfig, Inputs, Load, Model,
    ModelConfig,
};
use ln_tuning::pretrained::{Form, Frozen, Head, ModelFiles, Place};
use ln_tuning::recompute::{Blocks, Recompute};
use ln_tuning::{merge, AdamW, AdapterOptions, ErrorKind, LnTuningConfig, LnTuningModel, Norms};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

type Tensors = HashMap<String, Tensor>;

const CASES: [&str; 8] = [
    "gemma3",
    "gemma3_odd",
    "idefics3",
    "smolvlm",
    "qwen2_5_vl",
    "qwen3_vl",
    "llava",
    "llava_middle",
];

/// The checkpoints of the script, made once for all tests.
fn made() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        tch::set_num_threads(1);
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("seeing");
        let _ = std::fs::remove_dir_all(&dir);
        common::run_python("seeing.py", &[dir.to_str().unwrap()]);
        dir
    })
}

fn open(case: &str) -> (VarStore, ImageTextToText, Tensors) {
    let path = made().join(case);
    let (vs, model) = ImageTextToText::from_pretrained(&path, Device::Cpu, None).unwrap();
    let reference = path.join("reference.st");
    let reference = Tensor::read_safetensors(reference).unwrap().into_iter().collect();
    (vs, model, reference)
}

fn off(ours: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(ours.size(), expected.size());
    let scale = expected.abs().max().double_value(&[]).max(0.1);
    (ours - expected).abs().max().double_value(&[]) / scale
}

/// The images of a batch of the reference, if there are any.
fn images<'r>(reference: &'r Tensors, of: &str) -> Option<&'r Tensor> {
    reference.get(&format!("{of}.images"))
}

fn inputs<'r>(reference: &'r Tensors, of: &str, images: Option<&'r Tensor>) -> Inputs<'r> {
    Inputs::new(&reference[&format!("{of}.ids")])
        .attention_mask(&reference[&format!("{of}.mask")])
        .pixel_attention_mask(reference.get(&format!("{of}.pixels")))
        .image_grid_thw(reference.get(&format!("{of}.grids")))
        .pixel_values(images)
}

fn gradients(vs: &VarStore, reference: &Tensors, of: &str) {
    let mut norms = 0;
    for (name, mut variable) in vs.variables() {
        let gradient = variable.grad();
        match reference.get(&format!("{of}.grad.{name}")) {
            Some(expected) => {
                assert!(gradient.defined(), "{of}: {name}");
                let off = off(&gradient, expected);
                assert!(off <= 1e-4, "{of}: the gradient of {name} is {off} off");
                norms += usize::from(name.contains("norm"));
            }
            None => {
                let none = !gradient.defined() || gradient.abs().max().double_value(&[]) == 0.;
                assert!(none, "{of}: {name}");
            }
        }
        variable.zero_grad();
    }
    assert!(norms >= 5, "{norms}");
}

#[test]
fn logits_losses_gradients_and_texts_are_those_of_transformers() {
    for case in CASES {
        let (vs, model, reference) = open(case);
        for of in ["right", "left", "none", "one", "two", "joined", "padded"] {
            if !reference.contains_key(&format!("{of}.ids")) {
                continue;
            }
            let inputs = inputs(&reference, of, images(&reference, of));
            let logits = model.logits(inputs).unwrap();
            let shown = reference[&format!("{of}.mask")].unsqueeze(-1).to_kind(Kind::Float);
            let expected = &reference[&format!("{of}.logits")];
            let off_logits = off(&(logits * &shown), &(expected * &shown));
            assert!(off_logits <= 1e-4, "{case} {of}: the logits are {off_logits} off");
            let labels = &reference[&format!("{of}.labels")];
            let loss = model.loss(inputs, labels, &LinearCrossEntropy::default()).unwrap();
            assert!(off(&loss, &reference[&format!("{of}.loss")]) <= 1e-5, "{case} {of}");
            loss.backward();
            gradients(&vs, &reference, of);
        }
        let prompt = inputs(&reference, "left", images(&reference, "left"));
        let new = model.generate(prompt, &GenerateOptions::default().max_new_tokens(12)).unwrap();
        assert_eq!(new, reference["new"], "{case}");
    }
}

#[test]
fn features_of_images_take_their_place_bit_for_bit_and_blocks_run_again_change_nothing() {
    for (case, of) in
        [("gemma3", "right"), ("idefics3", "padded"), ("qwen2_5_vl", "left"), ("qwen3_vl", "left")]
    {
        let (vs, model, reference) = open(case);
        let images = images(&reference, of);
        let whole = inputs(&reference, of, images);
        let mask = reference.get(&format!("{of}.pixels"));
        let grids = reference.get(&format!("{of}.grids"));
        let of_images = Inputs::images(images.unwrap()).pixel_attention_mask(mask);
        let features = model.image_features(of_images.image_grid_thw(grids)).unwrap();
        let kept = Inputs::new(&reference[&format!("{of}.ids")])
            .attention_mask(&reference[&format!("{of}.mask")])
            .image_grid_thw(grids)
            .image_features(&features);
        assert_eq!(model.logits(kept).unwrap(), model.logits(whole).unwrap(), "{case}");

        let labels = &reference[&format!("{of}.labels")];
        let norms = vs.variables().into_iter().filter(|(name, _)| name.contains("norm"));
        let norms: Vec<(String, Tensor)> = norms.collect();
        let tensors: Vec<Tensor> = norms.iter().map(|(_, norm)| norm.shallow_clone()).collect();
        let recompute = Recompute::new(Blocks::All);
        let (_, found) = recompute
            .gradients(&tensors, |tape| {
                model.loss_with(whole, labels, &LinearCrossEntropy::default(), tape)
            })
            .unwrap();
        for ((name, _), found) in norms.iter().zip(&found) {
            let expected = reference.get(&format!("{of}.grad.{name}"));
            assert_eq!(found.defined(), expected.is_some(), "{case}: {name}");
            if let Some(expected) = expected {
                let off = off(found, expected);
                assert!(off <= 1e-4, "{case}: the gradient of {name} is {off} off");
            }
        }
    }
}

#[test]
fn a_model_that_sees_loads_in_every_form_and_place() {
    for case in ["gemma3", "idefics3", "qwen3_vl"] {
        let (_, model, reference) = open(case);
        let batch = inputs(&reference, "two", images(&reference, "two"));
        let expected = model.logits(batch).unwrap();
        let load = |frozen: Frozen| {
            let load = Load::on(Device::Cpu).frozen(frozen);
            ImageTextToText::from_pretrained_with(made().join(case), &load).unwrap()
        };
        let (_, streamed) = load(Frozen::default().place(Place::Streamed));
        assert_eq!(streamed.logits(batch).unwrap(), expected, "{case}");
        let (vs, few) = load(Frozen::default().form(Form::Int8));
        let off = off(&few.logits(batch).unwrap(), &expected);
        assert!(off > 0. && off <= 0.1, "{case}: {off}");
        // The tower's matrices too; the connector trains, so it is kept as numbers.
        for (name, tensor) in vs.variables() {
            let of_connector =
                ["projector", "connector", "merger"].iter().any(|m| name.contains(m));
            let of_blocks = [".mlp.", "attn."].iter().any(|m| name.contains(m));
            let kept = name.ends_with("weight") && of_blocks && !name.contains("norm");
            assert!(!(of_connector && tensor.kind() == Kind::Uint8), "{case}: {name}");
            assert!(of_connector || !kept || tensor.kind() == Kind::Uint8, "{case}: {name}");
        }
    }
}

#[test]
fn packed_documents_with_images_compute_what_their_rows_compute() {
    for case in ["gemma3", "idefics3"] {
        let (_, model, reference) = open(case);
        let apart = inputs(&reference, "right", images(&reference, "right"));
        let (ids, mask) = (&reference["right.ids"], &reference["right.mask"]);
        let lengths: Vec<i64> =
            (0..4).map(|row| mask.get(row).sum(Kind::Int64).int64_value(&[])).collect();
        let rows = lengths.iter().enumerate();
        let rows: Vec<Tensor> =
            rows.map(|(row, length)| ids.get(row as i64).narrow(0, 0, *length)).collect();
        let documents: Vec<i64> =
            lengths.iter().enumerate().flat_map(|(row, n)| vec![row as i64; *n as usize]).collect();
        let (packed, documents) =
            (Tensor::cat(&rows, 0).unsqueeze(0), Tensor::from_slice(&documents).unsqueeze(0));
        let packed = Inputs::new(&packed).documents(&documents);
        let packed = packed.pixel_values(images(&reference, "right"));
        let (packed, apart) = (model.logits(packed).unwrap(), model.logits(apart).unwrap());
        let mut start = 0;
        for (row, length) in lengths.iter().enumerate() {
            let ours = packed.get(0).narrow(0, start, *length);
            assert!(
                off(&ours, &apart.get(row as i64).narrow(0, 0, *length)) <= 1e-5,
                "{case} {row}"
            );
            start += length;
        }
    }
    let (_, model, reference) = open("qwen3_vl");
    let ids = &reference["none.ids"];
    let error = model.logits(Inputs::new(ids).documents(&ids.zeros_like())).unwrap_err();
    assert!(error.to_string().contains("qwen3_vl has no use for documents"), "{error}");
    let tokens = |size: [i64; 2]| model.config().image_tokens(size[0], size[1]);
    assert_eq!(tokens([8, 16]).unwrap(), 8);
    assert_eq!(tokens([8, 10]).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn in_bf16_a_step_of_tuning_lowers_the_loss_and_touches_norms_alone() {
    for case in ["gemma3", "smolvlm", "qwen3_vl"] {
        let (_, _, reference) = open(case);
        let path = made().join(case);
        let (vs, model) =
            ImageTextToText::from_pretrained(path, Device::Cpu, Kind::BFloat16).unwrap();
        let images = images(&reference, "left").unwrap().to_kind(Kind::BFloat16);
        let inputs = inputs(&reference, "left", Some(&images)).train(true);
        let before: HashMap<String, Tensor> =
            vs.variables().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
        let options = AdapterOptions::default().norms(Norms::All);
        let config = LnTuningConfig::default();
        let tuned = LnTuningModel::with_options(&vs, config, "default", &options).unwrap();
        let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
        let loss = || {
            let labels = &reference["left.labels"];
            model.loss(inputs, labels, &LinearCrossEntropy::default()).unwrap()
        };
        let first = loss().double_value(&[]);
        for _ in 0..5 {
            opt.backward_step(&loss()).unwrap();
        }
        assert!(loss().double_value(&[]) < first - 0.01, "{case}");
        for (name, tensor) in vs.variables() {
            let same = tensor.equal(&before[&name]);
            assert!(same || name.contains("norm"), "{case}: {name}");
        }
    }
}

/// As files on the Hub have it, which leave things out.
#[test]
fn configurations_of_every_version_are_read_and_what_they_lack_is_the_default_of_transformers() {
    let llama = json!({
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "model_type": "llama", "vocab_size": 49_280, "rope_theta": 100_000.0, "pad_token_id": 2,
        "is_llama_config": true, "qk_layer_norms": false, "use_resampler": false, "pixel_shuffle_factor": 4,
    });
    let gemma = json!({
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255_999,
        "eoi_token_index": 256_000, "eos_token_id": [1, 106], "image_token_index": 262_144, "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10_240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
        "vision_config": {
            "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": false,
        },
    });
    let small = json!({
        "model_type": "idefics3", "architectures": ["Idefics3ForConditionalGeneration"], "image_token_id": 49_190,
        "scale_factor": 4, "text_config": llama,
        "vision_config": {
            "hidden_size": 768, "image_size": 512, "max_image_size": {"longest_edge": 512}, "model_type": "idefics3",
            "num_attention_heads": 12, "patch_size": 16, "size": {"longest_edge": 2048},
        },
    });
    let qwen = json!({
        "model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"], "image_token_id": 151_655,
        "tie_word_embeddings": true, "video_token_id": 151_656, "vision_start_token_id": 151_652,
        "text_config": {
            "attention_bias": false, "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
            "intermediate_size": 6144, "max_position_embeddings": 262_144, "model_type": "qwen3_vl_text",
            "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
            "rope_scaling": {"mrope_interleaved": true, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5_000_000, "tie_word_embeddings": true, "vocab_size": 151_936,
        },
        "vision_config": {
            "deepstack_visual_indexes": [5, 11, 17], "depth": 24, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1024,
            "in_channels": 3, "intermediate_size": 4096, "model_type": "qwen3_vl", "num_heads": 16,
            "num_position_embeddings": 2304, "out_hidden_size": 2048, "patch_size": 16, "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    });
    // Without a key for the language model.
    let flat = json!({
        "model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"], "image_token_id": 151_655,
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11_008,
        "max_position_embeddings": 128_000, "max_window_layers": 70, "num_attention_heads": 16, "num_hidden_layers": 36,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "sliding_window": 32_768,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "use_sliding_window": false,
        "tie_word_embeddings": true, "vocab_size": 151_936, "vision_start_token_id": 151_652,
        "vision_config": {
            "depth": 32, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu", "hidden_size": 1280,
            "in_chans": 3, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048, "patch_size": 14,
            "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2, "tokens_per_second": 2,
            "window_size": 112,
        },
    });
    // Pixels beyond the last whole patch.
    let larger = json!({
        "model_type": "smolvlm", "architectures": ["SmolVLMForConditionalGeneration"], "image_token_id": 49_190,
        "scale_factor": 3, "text_config": llama,
        "vision_config": {
            "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "model_type": "smolvlm_vision",
            "num_hidden_layers": 27, "patch_size": 14,
        },
    });
    for (config, tokens, id, vocabulary) in [
        (gemma, 256, 262_144, 262_208),
        (small, 64, 49_190, 49_280),
        (larger, 81, 49_190, 49_280),
        (qwen, 0, 151_655, 151_936),
        (flat, 0, 151_655, 151_936),
    ] {
        let read = ImageTextToTextConfig::from_value(&config).unwrap();
        assert_eq!(read.tokens_per_image(), tokens);
        assert_eq!(read.image_token_id(), id);
        assert_eq!(read.text().vocab_size(), vocabulary);
        assert_eq!(read.head(), Head::LanguageModel);
    }
}
