//! A trace of a model (`CModule::create_by_tracing`) sees libtorch's operators alone: where one is recorded, functions of
//! our own that it could not see stand back.

use ln_tuning::models::{Decoder, DecoderConfig, Encoder, EncoderConfig, Model, ModelConfig};
use serde_json::json;
use tch::nn::VarStore;
use tch::{CModule, Device, Kind, Tensor};

/// The trace of these ids computes what the model makes of others.
fn check(vs: &mut VarStore, kind: Kind, logits: &dyn Fn(&Tensor) -> Tensor) {
    vs.set_kind(kind);
    // A trace takes no tensors that train.
    vs.freeze();
    let ids = |seed: i64| {
        let numbers = Tensor::arange(2 * 40, (Kind::Int64, Device::Cpu)) * seed;
        (&numbers * &numbers + 3).remainder(30).view([2, 40])
    };
    let mut traced = |of: &[Tensor]| vec![logits(&of[0])];
    let module = CModule::create_by_tracing("model", "forward", &[ids(1)], &mut traced).unwrap();
    for seed in [1, 7] {
        let found = module.forward_ts(&[ids(seed)]).unwrap().to_kind(Kind::Float);
        let expected = logits(&ids(seed)).to_kind(Kind::Float);
        let off = (&found - &expected).abs().max().double_value(&[]);
        let limit = if kind == Kind::Float { 1e-5 } else { 0.05 };
        let scale = expected.abs().max().double_value(&[]);
        assert!(off <= limit * scale, "{kind:?}: {off} off, of {scale}");
    }
    // Other ids give other logits, or the comparison would show nothing.
    let [one, other] = [1, 7].map(|seed| logits(&ids(seed)).to_kind(Kind::Float));
    assert!(
        (one - &other).abs().max().double_value(&[]) > 0.1 * other.abs().max().double_value(&[])
    );
}

#[test]
fn a_trace_of_a_model_computes_other_inputs_too() {
    tch::manual_seed(3);
    for kind in [Kind::Float, Kind::BFloat16] {
        let mut vs = VarStore::new(Device::Cpu);
        let config = json!({
            "model_type": "llama", "vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "rms_norm_eps": 1e-6,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
            "max_position_embeddings": 64,
        });
        let config = DecoderConfig::from_value(&config).unwrap();
        let decoder = Decoder::new(&vs.root(), &config).unwrap();
        check(&mut vs, kind, &|ids| decoder.logits(ids).unwrap());
        let mut vs = VarStore::new(Device::Cpu);
        let config = json!({
            "model_type": "bert", "vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 64, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
            "hidden_act": "gelu", "initializer_range": 0.3, "architectures": ["BertForMaskedLM"],
        });
        let config = EncoderConfig::from_value(&config).unwrap();
        let encoder = Encoder::new(&vs.root(), &config).unwrap();
        check(&mut vs, kind, &|ids| encoder.logits(ids).unwrap());
    }
}
