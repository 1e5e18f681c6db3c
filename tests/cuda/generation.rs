//! Generation: the tokens are all that is read from the device, and little is launched for each.

use ln_tuning::device::best_device;
use ln_tuning::models::{
    Decoder, GenerateOptions, Inputs, Model, ModelConfig, Seq2Seq, Seq2SeqConfig,
};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use crate::counting::{self, Counts, Gpu};
use crate::training_step::{built, decoders};

const KINDS: [Kind; 3] = [Kind::BFloat16, Kind::Half, Kind::Float];

fn ways() -> [(&'static str, GenerateOptions); 3] {
    let stop = GenerateOptions::default().stop_tokens([39]);
    [
        ("likeliest", stop.clone()),
        ("penalised", stop.clone().repetition_penalty(1.3)),
        ("drawn", stop.temperature(0.8).top_k(5).top_p(0.9).seed(1)),
    ]
}

/// The counts of two tokens and of six: those from the third on stand for all that follow. Before, what is kept is
/// made.
pub(crate) fn four_tokens(
    mut generate: impl FnMut(i64) -> ln_tuning::Result<Tensor>,
) -> [Counts; 2] {
    let [_, two, six] = [2, 2, 6].map(|tokens| {
        counting::reset();
        assert_eq!(generate(tokens).unwrap().size()[1], tokens);
        counting::counts()
    });
    [two, six]
}

/// One wait for each token, for the tokens themselves; nothing goes to the device.
fn reads_one_thing_per_token(what: &str, [two, six]: &[Counts; 2]) {
    let more = |of: fn(&Counts) -> u64| of(six) - of(two);
    let found = [
        more(|counts| counts.synchronisations),
        more(|counts| counts.copies_back),
        more(|counts| counts.pageable_copies),
    ];
    assert_eq!(found, [4, 4, 0], "{what}: {:?}\n{:?}", two.calls, six.calls);
}

#[test]
fn of_a_decoder_reads_one_thing_per_token() {
    Gpu::default().run(|| {
        let device = best_device();
        let ids = Tensor::zeros([2, 9], (Kind::Int64, device));
        let mask = ids.ones_like();
        let _ = mask.get(0).narrow(0, 0, 3).fill_(0);
        for (config, kind) in decoders().iter().zip(KINDS.iter().copied().cycle()) {
            let (_vs, model) = built::<Decoder>(config, kind, device);
            for (way, options) in ways() {
                for rows in [1, 2] {
                    let (ids, mask) = (ids.narrow(0, 0, rows), mask.narrow(0, 0, rows));
                    let plain = Inputs::new(&ids);
                    for (form, inputs) in
                        [("plain", plain), ("padded", plain.attention_mask(&mask))]
                    {
                        let counts = four_tokens(|tokens| {
                            model.generate(inputs, &options.clone().max_new_tokens(tokens))
                        });
                        let what = format!("{way}, {form}, {rows} rows, {kind:?}, {config}");
                        reads_one_thing_per_token(&what, &counts);
                    }
                }
            }
        }
    });
}

#[test]
fn of_an_encoder_decoder_reads_one_thing_per_token() {
    Gpu::default().run(|| {
        let device = best_device();
        let ids = Tensor::zeros([2, 9], (Kind::Int64, device));
        let mask = ids.ones_like();
        for (family, kind) in ["t5", "mt5", "bart"].iter().flat_map(|f| KINDS.map(|k| (f, k))) {
            let config = json!({
                "model_type": family, "vocab_size": 40, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2,
                "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
                "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
                "max_position_embeddings": 64, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
            });
            let mut vs = VarStore::new(device);
            vs.set_kind(kind);
            let config = Seq2SeqConfig::from_value(&config).unwrap();
            let model = Seq2Seq::new(&vs.root(), &config).unwrap();
            for (way, options) in ways() {
                let plain = Inputs::new(&ids);
                for (form, inputs) in [("plain", plain), ("padded", plain.attention_mask(&mask))] {
                    let counts = four_tokens(|tokens| {
                        model.generate(inputs, &options.clone().max_new_tokens(tokens))
                    });
                    reads_one_thing_per_token(&format!("{way}, {form}, {kind:?}, {family}"), &counts);
                }
            }
        }
    });
}

/// Per token and layer, and per token whatever the layers.
#[test]
fn of_a_token_has_its_budget_of_launches() {
    Gpu::default().run(|| {
        let device = best_device();
        let ids = Tensor::zeros([1, 9], (Kind::Int64, device));
        let mask = ids.ones_like();
        let [plain, padded] = [false, true].map(|padded| {
            [2, 6].map(|layers| {
                let config = json!({
                    "model_type": "llama", "vocab_size": 512, "hidden_size": 512, "intermediate_size": 1024,
                    "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 2,
                    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
                });
                let (_vs, model) = built::<Decoder>(&config, Kind::BFloat16, device);
                let inputs = Inputs::new(&ids);
                let inputs = if padded { inputs.attention_mask(&mask) } else { inputs };
                let options = GenerateOptions::default().stop_tokens([]);
                let [two, six] = four_tokens(|tokens| {
                    model.generate(inputs, &options.clone().max_new_tokens(tokens))
                });
                assert_eq!(six.calls_with("Batched"), 0, "{:?}", six.calls);
                (six.launches - two.launches) / 4
            })
        });
        for (what, [two, six], most) in [("plain", plain, 13), ("padded", padded, 14)] {
            let (layer, rest) = ((six - two) / 4, two - (six - two) / 2);
            assert!(layer <= most, "{what}: {layer} launches per token and layer");
            assert!(rest <= 6, "{what}: {rest} launches per token beside the layers");
        }
    });
}
