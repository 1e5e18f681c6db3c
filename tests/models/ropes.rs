//! Every type of rope gives the numbers of transformers, below and above the length that the model has learned from.

use std::collections::HashMap;

use crate::common;
use ln_tuning::models::{Decoder, DecoderConfig, GenerateOptions, Inputs, Model, ModelConfig};
use ln_tuning::ErrorKind;
use proptest::prelude::*;
use serde_json::{json, Value};
use tch::{nn::VarStore, Device, Kind, Tensor};

/// A small Llama's `config.json` with these keys.
fn config(changes: Value) -> Value {
    let mut config = json!({
        "model_type": "llama", "vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.5,
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn every_type_of_rope_gives_the_logits_and_texts_of_transformers() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    common::run_python("ropes.py", &[dir.path().to_str().unwrap()]);
    let mut cases = 0;
    for case in std::fs::read_dir(dir.path()).unwrap() {
        let case = case.unwrap().path();
        let reference: HashMap<String, Tensor> =
            Tensor::read_safetensors(case.join("reference.st")).unwrap().into_iter().collect();
        let (_vs, model) = Decoder::from_pretrained(&case, Device::Cpu, None).unwrap();
        let ids = &reference["input_ids"];
        let logits = |length: i64| model.logits(&ids.narrow(1, 0, length)).unwrap();
        // Runs before change nothing: a long sequence stands between short ones.
        for length in [16, 28, 16, 17] {
            let expected = &reference[&format!("logits.{length}")];
            let off =
                difference(&logits(length), expected) / expected.abs().max().double_value(&[]);
            assert!(off <= 1e-5, "{case:?}: logits of {length} places are {off} off");
            // Padding on the right changes nothing, as far as it may go.
            let padded = model.config().padded_length(length, 64);
            let padded = ids.narrow(1, 0, length).constant_pad_nd([0, padded - length]);
            let padded = model.logits(&padded).unwrap().narrow(1, 0, length);
            let off = difference(&padded, expected) / expected.abs().max().double_value(&[]);
            assert!(off <= 1e-5, "{case:?}: padded, logits of {length} places are {off} off");
        }
        let options = GenerateOptions::default().max_new_tokens(14);
        for (side, padding) in [("none", 0), ("left", 3)] {
            let Some(expected) = reference.get(&format!("text.{side}")) else { continue };
            let mask = Tensor::ones([2, 10], (Kind::Int64, Device::Cpu));
            let _ = mask.get(0).narrow(0, 0, padding).fill_(0);
            let prompt = ids.narrow(1, 0, 10) * &mask;
            let inputs = Inputs::new(&prompt).attention_mask(&mask);
            let text = model.generate(inputs, &options.clone().stop_tokens([])).unwrap();
            assert!(text.equal(expected), "{case:?} {side}: {text} {expected}");
        }
        cases += 1;
    }
    assert_eq!(cases, 69);
}

#[test]
fn settings_that_cannot_be_right_are_refused_by_name() {
    let long = |key: &str, value: Value| {
        let mut rope = json!({
            "type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2],
            "original_max_position_embeddings": 16,
        });
        rope[key] = value;
        json!({"rope_scaling": rope})
    };
    let scaling = |rope: Value| json!({"rope_scaling": rope});
    let yarn = |key: &str, value: Value| scaling(json!({"type": "yarn", "factor": 4, key: value}));
    let llama3 = |low: f64, high: f64| {
        let rope = json!({
            "rope_type": "llama3", "factor": 8, "low_freq_factor": low, "high_freq_factor": high,
        });
        scaling(rope)
    };
    for (changes, expected) in [
        (scaling(json!({"type": "yarn"})), "'rope_scaling': 'factor' is missing"),
        (
            json!({"rope_parameters": {"rope_type": "linear"}}),
            "'rope_parameters': 'factor' is missing",
        ),
        (
            scaling(json!({"type": "dynamic", "factor": 0.5})),
            "'factor' is 0.5, expected a number of 1 or more",
        ),
        (scaling(json!({"type": "linear", "factor": "4"})), "'factor' is \"4\", expected a number"),
        (
            scaling(json!({"rope_type": null, "type": "linear"})),
            "'rope_type' is null, expected a name",
        ),
        (scaling(json!({"rope_type": ["yarn"]})), "expected a name"),
        (scaling(json!("linear")), "'rope_scaling' is \"linear\", expected an object"),
        (json!({"rope_theta": 0}), "'rope_theta' is 0, expected a number above 0"),
        (
            json!({"rope_parameters": {"rope_theta": "1e4"}}),
            "'rope_theta' is \"1e4\", expected a number",
        ),
        (
            yarn("attention_factor", json!(-1)),
            "'attention_factor' is -1, expected a number of 0 or more",
        ),
        (yarn("beta_fast", json!(0.5)), "'beta_fast' is 0.5 and 'beta_slow' is 1"),
        (
            yarn("attention_factor", json!(3e18)),
            "the factor of attention is 3e18 ('attention_factor', or 'mscale'), expected 1e9 at most",
        ),
        (yarn("beta_slow", json!([])), "'beta_slow' is [], expected a number"),
        (yarn("truncate", json!("no")), "'truncate' is \"no\", expected true or false"),
        (yarn("rope_theta", json!(1)), "'rope_theta' is 1, expected another number"),
        (
            yarn("original_max_position_embeddings", json!(0)),
            "'original_max_position_embeddings' is 0",
        ),
        (
            yarn("partial_rotary_factor", json!(0.5)),
            "'partial_rotary_factor': 0.5 with rope_type 'yarn' for llama",
        ),
        (
            long("short_factor", json!([1, 1, 1])),
            "'short_factor' is a list of 3 numbers, expected a list of 4",
        ),
        (
            long("long_factor", json!(null)),
            "'long_factor' is missing, expected a list of 4 numbers",
        ),
        (long("long_factor", json!([1, 1, 0, 1])), "numbers above 0"),
        (long("long_factor", json!([1, 1, "2", 1])), "a list with other things than numbers"),
        (llama3(4., 1.), "'low_freq_factor' is 4 and 'high_freq_factor' is 1"),
        (llama3(0., 1.), "'low_freq_factor' is 0"),
        (json!({"max_position_embeddings": 0}), "'max_position_embeddings'"),
        (json!({"head_dim": 5}), "5 dimensions of a head of 5 are turned, expected an even number"),
        (
            json!({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4}}}),
            "'rope_parameters' holds an object 'full_attention'",
        ),
        (
            json!({"model_type": "gemma3_text", "rope_parameters": {"rope_type": "linear", "factor": 2}}),
            "expected objects for full_attention and sliding_attention",
        ),
        (
            json!({"model_type": "gemma3_text", "rope_parameters": {"full_attention": {"rope_type": "yarn"}}}),
            "'rope_parameters.full_attention': 'factor' is missing",
        ),
    ] {
        let error = DecoderConfig::from_value(&config(changes.clone())).unwrap_err();
        assert_eq!(
            error.kind() == ErrorKind::Unsupported,
            expected.contains(" for llama"),
            "{error}"
        );
        assert!(error.to_string().contains(expected), "{changes}: {error}");
    }
    for (changes, expected) in [
        (
            scaling(json!({"type": "mrope"})),
            "'rope_scaling': 'rope_type' is 'mrope', expected one of default, linear",
        ),
        (
            json!({"model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2}}),
            "rope_type 'linear' for phi3",
        ),
        (
            json!({"model_type": "gptj", "rotary_dim": 4, "rope_scaling": {"type": "linear", "factor": 2}}),
            "'rope_scaling' for gptj",
        ),
        (
            json!({"model_type": "bloom", "pretraining_tp": 2, "slow_but_exact": true}),
            "'slow_but_exact'",
        ),
    ] {
        let error = DecoderConfig::from_value(&config(changes)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// Packed, no document is longer than the original length, though all of them together are.
#[test]
fn documents_in_one_row_are_turned_as_they_are_alone() {
    for rope in [
        json!({"type": "dynamic", "factor": 4}),
        json!({"type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [2, 3, 5, 9]}),
    ] {
        let config = config(json!({"rope_scaling": rope, "max_position_embeddings": 8}));
        let vs = VarStore::new(Device::Cpu);
        let model = Decoder::new(&vs.root(), &DecoderConfig::from_value(&config).unwrap()).unwrap();
        let ids = Tensor::arange(12, (Kind::Int64, Device::Cpu)).view([1, 12]);
        let documents = (&ids / 6).to_kind(Kind::Int64);
        let packed = model.logits(Inputs::new(&ids).documents(Some(&documents))).unwrap();
        for start in [0, 6] {
            let alone = model.logits(&ids.narrow(1, start, 6)).unwrap();
            assert!(difference(&packed.narrow(1, start, 6), &alone) < 1e-5, "{rope}");
        }
        let together = model.logits(&ids).unwrap();
        assert!(difference(&packed.narrow(1, 0, 6), &together.narrow(1, 0, 6)) > 1e-3, "{rope}");
    }
}

fn setting() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2_f64..70.).prop_map(Value::from),
        proptest::num::f64::NORMAL.prop_map(Value::from),
        proptest::collection::vec(0_f64..3., 0..6).prop_map(Value::from),
        prop_oneof!["yarn", "longrope", "dynamic", "llama3", "proportional"].prop_map(Value::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Refused, or a rope of whole numbers: a wrong setting gives no NaN, and stops no program.
    #[test]
    fn any_settings_are_refused_or_give_finite_logits(
        name in prop_oneof!["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"],
        settings in proptest::collection::hash_map(
            prop_oneof![
                "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor",
                "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "short_factor", "long_factor",
                "low_freq_factor", "high_freq_factor", "partial_rotary_factor",
            ],
            setting(),
            0..5,
        ),
        positions in prop_oneof![Just(8_i64), any::<i64>()],
    ) {
        let mut rope = json!({
            "rope_type": name, "factor": 2, "low_freq_factor": 1, "high_freq_factor": 2, "short_factor": [1, 1, 1, 1],
            "long_factor": [2, 2, 2, 2],
        });
        rope.as_object_mut().unwrap().extend(settings);
        let config = config(json!({"rope_parameters": rope, "max_position_embeddings": positions}));
        let Ok(read) = DecoderConfig::from_value(&config) else { return Ok(()) };
        let vs = VarStore::new(Device::Cpu);
        let model = Decoder::new(&vs.root(), &read).unwrap();
        let ids = Tensor::arange(12, (Kind::Int64, Device::Cpu)).view([1, 12]);
        let logits = model.logits(&ids).unwrap();
        prop_assert!(bool::try_from(logits.isfinite().all()).unwrap(), "{config}");
    }
}
