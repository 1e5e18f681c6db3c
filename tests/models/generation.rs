//! Generation draws what its options say, and packed documents do not see each other.

use crate::nets;
use ln_tuning::models::{Decoder, DecoderConfig, GenerateOptions, Inputs, Model, ModelConfig};
use ln_tuning::ErrorKind;
use serde_json::json;
use tch::nn::VarStore;
use tch::{no_grad, Device, Kind, Tensor};

fn model(config: serde_json::Value) -> (VarStore, Decoder) {
    let vs = VarStore::new(Device::Cpu);
    let model = Decoder::new(&vs.root(), &DecoderConfig::from_value(&config).unwrap()).unwrap();
    nets::fill(&vs, 0.3);
    (vs, model)
}

fn llama() -> (VarStore, Decoder) {
    model(json!({
        "model_type": "llama", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "eos_token_id": [7, 8], "pad_token_id": 0,
    }))
}

fn tokens(text: &Tensor) -> Vec<i64> {
    Vec::try_from(text.reshape([-1])).unwrap()
}

fn ids(rows: &[[i64; 4]]) -> Tensor {
    Tensor::from_slice2(rows)
}

#[test]
fn each_token_is_the_likeliest_of_the_whole_text_so_far() {
    let (_vs, model) = llama();
    let prompt = ids(&[[3, 4, 5, 6], [9, 8, 7, 6]]);
    let options = GenerateOptions::default().max_new_tokens(12).stop_tokens([]);
    let text = model.generate(&prompt, &options).unwrap();
    assert_eq!(text.size(), [2, 12]);
    let whole = Tensor::cat(&[&prompt, &text], 1);
    let likeliest = no_grad(|| model.logits(&whole)).unwrap().argmax(-1, false);
    assert_eq!(tokens(&likeliest.narrow(1, 3, 12)), tokens(&text));
}

#[test]
fn a_padded_row_goes_on_as_it_does_alone_through_windows_and_biases() {
    let base = json!({
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
        "sliding_window": 4, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "ffn_dim": 24,
        "word_embed_proj_dim": 32, "new_decoder_architecture": false, "multi_query": true, "pad_token_id": 0,
    });
    let dynamic = json!({"rope_type": "dynamic", "factor": 2.});
    for more in [
        json!({"model_type": "llama"}),
        json!({"model_type": "llama", "rope_scaling": dynamic}),
        json!({"model_type": "mistral"}),
        json!({"model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 1}),
        json!({"model_type": "gemma2"}),
        json!({"model_type": "gemma3_text"}),
        json!({"model_type": "cohere"}),
        json!({"model_type": "bloom"}),
        json!({"model_type": "falcon", "alibi": true}),
        json!({"model_type": "falcon", "alibi": false}),
        json!({"model_type": "opt"}),
        json!({"model_type": "gpt2"}),
    ] {
        let mut config = base.clone();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (_vs, model) = model(config);
        let options = GenerateOptions::default().max_new_tokens(9).stop_tokens([]);
        let texts = [vec![5_i64], vec![9, 8, 7, 6, 5, 4]].map(|row| {
            let row = Tensor::from_slice(&row).unsqueeze(0);
            let text = model.generate(&row, &options).unwrap();
            let whole = Tensor::cat(&[&row, &text], 1);
            let likeliest = no_grad(|| model.logits(&whole)).unwrap().argmax(-1, false);
            let likeliest = likeliest.narrow(1, row.size()[1] - 1, 9);
            assert_eq!(tokens(&likeliest), tokens(&text), "{more}");
            tokens(&text)
        });
        let prompt = Tensor::from_slice2(&[[0_i64, 0, 0, 0, 0, 5], [9, 8, 7, 6, 5, 4]]);
        let mask = Tensor::from_slice2(&[[0_i64, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1]]);
        let inputs = Inputs::new(&prompt).attention_mask(&mask);
        let found = model.generate(inputs, &options).unwrap();
        assert_eq!(tokens(&found), texts.concat(), "{more}");
    }
}

#[test]
fn draws_hang_on_the_seed_alone_and_stay_within_the_likeliest() {
    let (_vs, model) = llama();
    let prompt = ids(&[[3, 4, 5, 6]]).expand([200, 4], false).contiguous();
    let options = GenerateOptions::default().max_new_tokens(1).temperature(1.5).stop_tokens([]);
    let draw = |options: &GenerateOptions| {
        tch::manual_seed(rand_seed());
        tokens(&model.generate(&prompt, options).unwrap())
    };
    assert_eq!(draw(&options), draw(&options));
    assert_ne!(draw(&options), draw(&options.clone().seed(1)));

    let scores = no_grad(|| model.logits(&prompt)).unwrap().select(1, 3).get(0) / 1.5;
    let (likely, order) = scores.softmax(-1, Kind::Double).sort(-1, true);
    let (likely, order) = (Vec::<f64>::try_from(likely).unwrap(), tokens(&order));
    // Frequencies are those of the probabilities: 4,000 draws of the likeliest token, within five deviations.
    let mut count = 0;
    for seed in 0..20 {
        let drawn = draw(&options.clone().seed(seed));
        count += drawn.iter().filter(|token| **token == order[0]).count();
    }
    let (expected, deviation) = (4000. * likely[0], (4000. * likely[0] * (1. - likely[0])).sqrt());
    assert!((count as f64 - expected).abs() < 5. * deviation, "{count}, expected {expected}");

    let top = draw(&options.clone().top_k(3));
    assert!(top.iter().all(|token| order[..3].contains(token)));
    assert!(order[..3].iter().all(|token| top.contains(token)), "each of the three is drawn");
    let needed = likely.iter().scan(0., |sum, p| {
        let before = *sum;
        *sum += p;
        Some(before)
    });
    let needed = needed.take_while(|before| *before < 0.5).count();
    let nucleus = draw(&options.clone().top_p(0.5));
    assert!(nucleus.iter().all(|token| order[..needed].contains(token)));
    assert!(order[..needed].iter().all(|token| nucleus.contains(token)));
    let coldest = draw(&options.clone().temperature(1e-4));
    assert!(coldest.iter().all(|token| *token == order[0]));
    assert!(draw(&options.clone().top_k(1)).iter().all(|token| *token == order[0]));
}

fn rand_seed() -> i64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos().into()
}

#[test]
fn a_row_ends_behind_a_stop_token_and_the_caller_may_end_it_all() {
    let (_vs, model) = llama();
    let prompt = ids(&[[3, 4, 5, 6], [9, 8, 7, 6]]);
    let options = GenerateOptions::default().max_new_tokens(12).stop_tokens([]);
    let free = model.generate(&prompt, &options).unwrap();
    let row = tokens(&free.get(0));
    let stop = row[3];
    let at = row.iter().position(|token| *token == stop).unwrap() as i64;
    let other = tokens(&free.get(1)).iter().position(|token| *token == stop).map(|at| at as i64);
    let stopped = model.generate(&prompt, &options.clone().stop_tokens([stop])).unwrap();
    let length = stopped.size()[1];
    assert_eq!(length, other.map_or(12, |other| at.max(other) + 1));
    assert_eq!(tokens(&stopped.get(0).narrow(0, 0, at + 1)), row[..=at as usize]);
    assert!(tokens(&stopped.get(0)).iter().skip(at as usize + 1).all(|token| *token == 0));

    let mut seen = Vec::new();
    let text = model
        .generate_streaming(&prompt, &options, |tokens| {
            seen.push(tokens.to_vec());
            seen.len() < 5
        })
        .unwrap();
    assert_eq!(text.size(), [2, 5]);
    assert_eq!(seen.concat(), tokens(&text.tr().contiguous()));
    // Gradients are on behind it, also where what is called panics.
    let run = || model.generate_streaming(&prompt, &options, |_| panic!("not this token"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
    let leaf = Tensor::zeros([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    assert!((leaf * 2.).requires_grad());
}

#[test]
fn options_and_inputs_that_cannot_be_are_refused() {
    let (_vs, model) = llama();
    let prompt = ids(&[[3, 4, 5, 6]]);
    let good = GenerateOptions::default().max_new_tokens(2);
    for bad in [
        good.clone().max_new_tokens(0),
        good.clone().temperature(-1.),
        good.clone().temperature(f64::NAN),
        good.clone().top_k(0),
        good.clone().top_p(0.),
        good.clone().top_p(1.1),
    ] {
        let error = model.generate(&prompt, &bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad:?}: {error}");
    }
    let nothing = Tensor::zeros([2, 0], (Kind::Int64, Device::Cpu));
    let error = model.generate(&nothing, &good).unwrap_err();
    assert!(error.to_string().contains("[2, 0], expected a token to continue"), "{error}");
    let mask = Tensor::from_slice2(&[[1_i64, 1, 1, 0]]);
    let error = model.generate(Inputs::new(&prompt).attention_mask(&mask), &good);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidArgument);
    let (_vs, gpt2) = model_gpt2();
    let error = gpt2.generate(&prompt, &good.max_new_tokens(20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
}

fn model_gpt2() -> (VarStore, Decoder) {
    model(json!({
        "model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12,
    }))
}

#[test]
fn packed_documents_are_computed_as_if_each_stood_alone() {
    let gemma = json!({
        "model_type": "gemma2", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 3,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    });
    let bloom = json!({
        "model_type": "bloom", "vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 2,
    });
    for (_vs, model) in [llama(), model_gpt2(), model(gemma), model(bloom)] {
        let name = model.config().model_type().to_owned();
        let row = Tensor::from_slice2(&[
            [3_i64, 4, 5, 6, 11, 12, 13, 20, 21, 22, 23, 0],
            [31, 32, 33, 34, 35, 36, 37, 38, 39, 30, 29, 28],
        ]);
        let documents = Tensor::from_slice2(&[[0_i64, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, -1], [0; 12]]);
        let packed = no_grad(|| model.logits(Inputs::new(&row).documents(&documents))).unwrap();
        for (batch, start, length) in [(0, 0, 4), (0, 4, 3), (0, 7, 4), (1, 0, 12)] {
            let alone = row.narrow(0, batch, 1).narrow(1, start, length);
            let alone = no_grad(|| model.logits(&alone)).unwrap();
            let same = packed.narrow(0, batch, 1).narrow(1, start, length);
            let off = (alone - same).abs().max().double_value(&[]);
            assert!(off < 1e-5, "{name}, row {batch}, from {start}: {off} off");
        }
    }
    let (_vs, model) = llama();
    let row = ids(&[[3, 4, 5, 6]]);
    let both = Inputs::new(&row).documents(&row).attention_mask(&row);
    assert_eq!(model.logits(both).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let short = row.narrow(1, 0, 2);
    let error = model.logits(Inputs::new(&row).documents(&short)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
}

#[test]
fn dropout_is_applied_in_training_alone() {
    let (_vs, model) = model_gpt2();
    let row = ids(&[[3, 4, 5, 6]]);
    let logits = |train: bool| no_grad(|| model.logits(Inputs::new(&row).train(train))).unwrap();
    assert_eq!(logits(false), logits(false));
    assert_ne!(logits(true), logits(true));
}
