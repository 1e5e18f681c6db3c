//! Rows that are padded on the right compute what they compute without padding.

use ln_tuning::models::{Decoder, DecoderConfig, Model, ModelConfig};
use proptest::prelude::*;
use serde_json::{json, Value};
use tch::{nn::VarStore, Device, Kind, Tensor};

const MOST: i64 = 50;

/// Learned positions, biases that grow with the distance, windows, ropes that depend on the length.
fn configs() -> [Value; 8] {
    let sizes = json!({
        "vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "ffn_dim": 16,
        "num_attention_heads": 2, "word_embed_proj_dim": 16, "max_position_embeddings": MOST, "initializer_range": 0.5,
    });
    let long = json!({
        "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 20,
        "short_factor": [1.0, 1.0, 1.5, 2.0], "long_factor": [1.5, 2.0, 3.0, 4.0],
    });
    [
        json!({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": MOST}),
        json!({"model_type": "opt"}),
        json!({"model_type": "bloom", "n_layer": 1, "n_head": 2}),
        json!({"model_type": "falcon", "alibi": true}),
        json!({"model_type": "mistral", "sliding_window": 9}),
        json!({"model_type": "llama"}),
        json!({"model_type": "llama", "rope_parameters": long}),
        json!({
            "model_type": "llama", "max_position_embeddings": 20,
            "rope_parameters": {"rope_type": "dynamic", "factor": 3.0},
        }),
    ]
    .map(|own| {
        let mut config = sizes.clone();
        config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        config
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn rows_padded_as_far_as_the_model_allows_have_the_same_logits(
        length in 1..=MOST, multiple in 1..=80_i64, seed in 0..1000_i64,
    ) {
        tch::set_num_threads(1);
        tch::manual_seed(seed);
        for config in configs() {
            let vs = VarStore::new(Device::Cpu);
            let parsed = DecoderConfig::from_value(&config).unwrap();
            let model = Decoder::new(&vs.root(), &parsed).unwrap();
            let padded = parsed.padded_length(length, multiple);
            prop_assert!((length..length + multiple).contains(&padded), "{config}: {length} to {padded}");
            let ids = Tensor::randint(20, [2, length], (Kind::Int64, Device::Cpu));
            let logits = model.logits(&ids).unwrap();
            let more = model.logits(&ids.constant_pad_nd([0, padded - length])).unwrap();
            let off = (more.narrow(1, 0, length) - &logits).abs().max().double_value(&[]);
            let off = off / logits.abs().max().double_value(&[]);
            prop_assert!(off <= 1e-5, "{config}: {length} places padded to {padded} are {off} off");
        }
    }
}

#[test]
fn rows_are_padded_to_the_next_multiple_where_nothing_forbids_it() {
    let padded = |config: &Value, length| {
        DecoderConfig::from_value(config).unwrap().padded_length(length, 64)
    };
    let of =
        |lengths: [i64; 4]| configs().map(|config| lengths.map(|length| padded(&config, length)));
    let learned = [50, 50, 50, 50];
    let free = [64, 64, 64, 64];
    let expected = [learned, learned, free, free, free, free, [20, 20, 64, 64], [20, 20, 21, 50]];
    assert_eq!(of([1, 20, 21, 50]), expected);
}
