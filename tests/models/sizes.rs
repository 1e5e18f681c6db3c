//! Sizes in `config.json` are held against the files before anything is made of them.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ln_tuning::models::{
    AnyModel, Clip, ClipVision, Decoder, DecoderConfig, Dinov2, Encoder, ImageTextToText,
    ImageTextToTextConfig, Inputs, Load, Model, ModelConfig, Seq2Seq, Siglip, SiglipVision,
    ViTConfig, ViTForImageClassification,
};
use ln_tuning::pretrained::{self, ModelFiles};
use ln_tuning::ErrorKind;
use proptest::prelude::*;
use proptest::sample::{select, Index};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

const TINY: &str = r#"{
    "vocab_size": 16, "hidden_size": 8, "n_embd": 8, "dim": 8, "d_model": 8,
    "intermediate_size": 12, "hidden_dim": 12, "ffn_dim": 12, "d_ff": 12, "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12, "mlp_ratio": 2, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "num_decoder_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "num_attention_heads": 2, "n_head": 2,
    "n_heads": 2, "num_heads": 2, "d_kv": 4, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "max_position_embeddings": 24, "n_positions": 24, "rotary_dim": 2, "pad_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2, "type_vocab_size": 2, "image_size": 8, "patch_size": 4, "num_channels": 3,
    "num_labels": 3, "sliding_window": 4, "max_window_layers": 1, "use_sliding_window": true,
    "sliding_window_pattern": 2, "no_rope_layer_interval": 2, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16, "projection_dim": 4, "query_pre_attn_scalar": 4,
    "initializer_range": 0.02, "partial_rotary_factor": 0.5, "rotary_pct": 0.5, "ffn_dim_multiplier": 1
}"#;

/// A tiny configuration for this model type, with the keys of all families.
fn tiny(model_type: &str) -> Value {
    let mut config: Value = serde_json::from_str(TINY).unwrap();
    config["model_type"] = json!(model_type);
    let tower = config.clone();
    let text = match model_type {
        "gemma3" => "gemma3_text",
        "qwen2_5_vl" => "qwen2_5_vl_text",
        "qwen3_vl" => "qwen3_vl_text",
        _ => "llama",
    };
    let vision = match model_type {
        "gemma3" => "siglip_vision_model",
        "idefics3" | "smolvlm" => "idefics3_vision",
        "qwen2_5_vl" => "qwen2_5_vl_vision",
        "qwen3_vl" => "qwen3_vl_vision",
        _ => "clip_vision_model",
    };
    if ImageTextToTextConfig::model_types().contains(&model_type) {
        for (key, part) in [("text_config", text), ("vision_config", vision)] {
            config[key] = tower.clone();
            config[key]["model_type"] = json!(part);
        }
        for (key, number) in [
            ("num_position_embeddings", json!(4)),
            ("spatial_merge_size", json!(2)),
            ("temporal_patch_size", json!(2)),
            ("out_hidden_size", json!(8)),
            ("deepstack_visual_indexes", json!([0])),
        ] {
            config["vision_config"][key] = number;
        }
        config["text_config"]["head_dim"] = json!(4);
        config["text_config"]["num_key_value_heads"] = json!(1);
        for (key, number) in [
            ("image_token_index", 9),
            ("image_token_id", 9),
            ("mm_tokens_per_image", 4),
            ("scale_factor", 2),
            ("vision_feature_layer", -1),
        ] {
            config[key] = json!(number);
        }
        config["image_grid_pinpoints"] = json!([[8, 16], [16, 16]]);
    }
    if ["clip", "siglip"].contains(&model_type) {
        for key in ["text_config", "vision_config"] {
            config[key] = tower.clone();
        }
    }
    // Key-value heads by the names of both kinds, where a family has them.
    if !["gpt_neox", "gpt2", "bloom", "opt", "gptj"].contains(&model_type) {
        config["num_key_value_heads"] = json!(1);
    }
    if ["olmo2", "granite", "llama", "gemma", "gemma2", "gemma3_text"].contains(&model_type) {
        config["head_dim"] = json!(4);
    }
    config
}

/// Every model type with a tiny model of it in a directory.
pub(super) fn models(root: &Path) -> Vec<(&'static str, Value)> {
    let mut made = Vec::new();
    add::<Decoder>(root, &mut made);
    add::<Encoder>(root, &mut made);
    add::<Seq2Seq>(root, &mut made);
    add::<ViTForImageClassification>(root, &mut made);
    add::<Dinov2>(root, &mut made);
    add::<Clip>(root, &mut made);
    add::<ClipVision>(root, &mut made);
    add::<Siglip>(root, &mut made);
    add::<SiglipVision>(root, &mut made);
    add::<ImageTextToText>(root, &mut made);
    assert_eq!(made.len(), AnyModel::model_types().len());
    made
}

fn add<M: Model>(root: &Path, made: &mut Vec<(&'static str, Value)>) {
    for model_type in M::Config::model_types() {
        let vs = VarStore::new(Device::Cpu);
        let config = tiny(model_type);
        let read = M::Config::from_value(&config).unwrap_or_else(|e| panic!("{model_type}: {e}"));
        M::new(&vs.root(), &read).unwrap_or_else(|e| panic!("{model_type}: {e}"));
        pretrained::save(&vs, root.join(model_type), &config.to_string()).unwrap();
        made.push((model_type, config));
    }
}

/// The places of all numbers, as JSON pointers.
fn numbers(config: &Value, above: &str) -> Vec<String> {
    match config {
        Value::Number(_) => vec![above.to_owned()],
        Value::Object(map) => {
            map.iter().flat_map(|(key, value)| numbers(value, &format!("{above}/{key}"))).collect()
        }
        _ => vec![],
    }
}

/// Opens a directory with another configuration and runs it. What comes of it must come soon.
fn open(dir: &Path, config: &Value, labels: bool) -> Result<(), ln_tuning::Error> {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let start = Instant::now();
    let result = run(dir, labels);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}: {config}");
    result
}

fn run(dir: &Path, labels: bool) -> Result<(), ln_tuning::Error> {
    let load = Load::on(Device::Cpu);
    let load = if labels { load.labels(["a", "b"]) } else { load };
    let (_vs, model) = AnyModel::from_files(ModelFiles::open(dir)?, &load)?;
    let ids = Tensor::from_slice2(&[[3_i64, 4, 5, 6, 7]]);
    let images = Tensor::zeros([1, 3, 8, 8], (Kind::Float, Device::Cpu));
    model.hidden_states(inputs(&model, &ids, &images)).map(drop)
}

/// Inputs that a model has use for.
pub(super) fn inputs<'a>(model: &AnyModel, ids: &'a Tensor, images: &'a Tensor) -> Inputs<'a> {
    match model {
        AnyModel::ViT(_)
        | AnyModel::Dinov2(_)
        | AnyModel::ClipVision(_)
        | AnyModel::SiglipVision(_)
        | AnyModel::TowerClassifier(_) => Inputs::images(images),
        AnyModel::Seq2Seq(_) => Inputs::new(ids).decoder_ids(ids),
        _ => Inputs::new(ids),
    }
}

#[test]
fn the_layers_that_a_configuration_names_are_those_of_the_files() {
    let root = tempfile::tempdir().unwrap();
    let layer_keys = [
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
        "num_decoder_layers",
        "encoder_layers",
        "decoder_layers",
    ];
    for (model_type, tiny) in models(root.path()) {
        let dir = root.path().join(model_type);
        open(&dir, &tiny, false).unwrap_or_else(|e| panic!("{model_type}: {e}"));
        for layers in [3_i64, 5000, 1_000_000, 1 << 40, i64::MAX, -1, 0] {
            let mut config = tiny.clone();
            for place in numbers(&tiny, "") {
                if layer_keys.iter().any(|key| place.ends_with(&format!("/{key}"))) {
                    *config.pointer_mut(&place).unwrap() = json!(layers);
                }
            }
            let error = open(&dir, &config, false).unwrap_err();
            let expected = match layers {
                3 | 5000 => ErrorKind::MissingKeys,
                _ => ErrorKind::InvalidConfig,
            };
            assert_eq!(error.kind(), expected, "{model_type} with {layers} layers: {error}");
        }
    }
}

/// Models that are made anew are not bounded by files.
#[test]
fn sizes_that_no_memory_holds_are_refused_before_a_model_is_made() {
    fn check<M: Model>() {
        for model_type in M::Config::model_types() {
            let tiny = tiny(model_type);
            // Other keys with other numbers for each family.
            let first = model_type.len() % 5;
            for (at, place) in numbers(&tiny, "").iter().enumerate().skip(first).step_by(5) {
                let number = [-1, 0, 1 << 40, i64::MAX, i64::MIN][at / 5 % 5];
                let mut config = tiny.clone();
                *config.pointer_mut(place).unwrap() = json!(number);
                let vs = VarStore::new(Device::Cpu);
                if let Ok(config) = M::Config::from_value(&config) {
                    let _ = M::new(&vs.root(), &config);
                }
            }
            let mut config = tiny.clone();
            for place in numbers(&tiny, "") {
                if ["/vocab_size", "/hidden_size", "/n_embd", "/dim", "/d_model", "/image_size"]
                    .iter()
                    .any(|key| place.ends_with(key))
                {
                    *config.pointer_mut(&place).unwrap() = json!(1 << 24);
                }
            }
            let vs = VarStore::new(Device::Cpu);
            let made = M::Config::from_value(&config).and_then(|c| M::new(&vs.root(), &c));
            assert!(made.is_err(), "{model_type}: {config}");
        }
    }
    check::<Decoder>();
    check::<Encoder>();
    check::<Seq2Seq>();
    check::<ViTForImageClassification>();
    check::<Dinov2>();
    check::<Clip>();
    check::<ImageTextToText>();
    for labels in [-1, 0, 1_i64 << 40] {
        let config = json!({"model_type": "vit", "num_labels": labels});
        let error = ViTConfig::from_value(&config).unwrap_err();
        assert!(error.to_string().contains("'num_labels'"), "{error}");
    }
}

#[test]
fn lists_for_each_layer_have_an_entry_for_each() {
    let mut config = tiny("smollm3");
    for (key, list, kind) in [
        ("layer_types", json!(["full_attention"]), Some(ErrorKind::InvalidConfig)),
        ("layer_types", json!(["full_attention", 1]), Some(ErrorKind::Unsupported)),
        ("layer_types", json!("full_attention"), Some(ErrorKind::InvalidConfig)),
        ("layer_types", json!(["full_attention", "sliding_attention"]), None),
        ("no_rope_layers", json!([1]), Some(ErrorKind::InvalidConfig)),
        ("no_rope_layers", json!([1, 0]), None),
        ("no_rope_layer_interval", json!(0), None),
    ] {
        config[key] = list;
        let read = DecoderConfig::from_value(&config);
        assert_eq!(read.err().map(|error| error.kind()), kind, "{key}: {}", config[key]);
    }
    config.as_object_mut().unwrap().remove("no_rope_layers");
    assert!(DecoderConfig::from_value(&config).is_err(), "an interval of 0 layers");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 0, failure_persistence: None, ..Default::default() })]

    #[test]
    fn numbers_of_any_size_end_in_an_error_or_a_model(
        changes in prop::collection::vec(
            (
                any::<Index>(),
                any::<Index>(),
                select(vec![
                    json!(-1), json!(0), json!(1), json!(2), json!(3), json!(7), json!(999), json!(100_000),
                    json!(1_000_000), json!(1_u64 << 30), json!(1_u64 << 31), json!(1_u64 << 40),
                    json!(i64::MAX), json!(i64::MIN), json!(u64::MAX), json!(0.5), json!(-0.5), json!(1e18),
                    json!(1e300),
                ]),
                any::<bool>(),
            ),
            50,
        ),
    ) {
        static MADE: OnceLock<(TempDir, Vec<(&str, Value)>)> = OnceLock::new();
        let (root, models) = MADE.get_or_init(|| {
            let root = tempfile::tempdir().unwrap();
            let models = models(root.path());
            (root, models)
        });
        for (model, place, number, labels) in changes {
            let (model_type, tiny) = model.get(models);
            let places = numbers(tiny, "");
            let place = place.get(&places);
            let mut config = tiny.clone();
            *config.pointer_mut(place).unwrap() = number.clone();
            println!("{model_type} {place} {number}");
            let _ = open(&root.path().join(model_type), &config, labels);
        }
    }
}
