//! A real pretrained model: sentence embeddings of all-MiniLM-L6-v2 are those of transformers, tuned ones those of
//! PEFT.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::common;
use ln_tuning::models::{Encoder, Inputs, Model};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{AdamW, AdapterOptions, LnTuningConfig, LnTuningModel};
use tch::{no_grad, Device, Kind, Tensor};
use tokenizers::{PaddingParams, Tokenizer};

const SENTENCES: [&str; 6] = [
    "The cat sits on the mat.",
    "A feline is resting upon a rug!",
    "Layer normalisation computes a mean and a variance over the features of each token, subtracts the one, divides by \
     the root of the other, and then scales and shifts what it has got with weights that were learned.",
    "Größe, façade, naïve — 東京 42 % of $1,000",
    "ok",
    "Rust's borrow checker doesn't allow two mutable references to the same value at the same time.",
];

/// Token ids and attention mask, padded on the right.
fn tokens(tokenizer: &Tokenizer) -> (Tensor, Tensor) {
    let encodings = tokenizer.encode_batch(SENTENCES.to_vec(), true).unwrap();
    let rows = |of: fn(&tokenizers::Encoding) -> &[u32]| {
        let row = |encoding| {
            let row: Vec<i64> = of(encoding).iter().map(|id| i64::from(*id)).collect();
            Tensor::from_slice(&row)
        };
        Tensor::stack(&encodings.iter().map(row).collect::<Vec<_>>(), 0)
    };
    (rows(|encoding| encoding.get_ids()), rows(|encoding| encoding.get_attention_mask()))
}

/// The mean over the tokens, of length 1.
fn embeddings(model: &Encoder, ids: &Tensor, mask: &Tensor) -> Tensor {
    let hidden = model.hidden_states(Inputs::new(ids).attention_mask(mask)).unwrap();
    let shown = mask.unsqueeze(-1).to_kind(Kind::Float);
    let sum = (hidden * &shown).sum_dim_intlist([1_i64].as_slice(), false, Kind::Float);
    let mean = sum / shown.sum_dim_intlist([1_i64].as_slice(), false, Kind::Float);
    let length = mean.square().sum_dim_intlist([-1_i64].as_slice(), true, Kind::Float).sqrt();
    mean / length
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[test]
fn sentence_embeddings_are_those_of_transformers_and_tuned_ones_those_of_peft() {
    tch::set_num_threads(1);
    let dir = PathBuf::from(common::run_python("minilm.py", &["where"]).trim());
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("sentences.json"), serde_json::to_string(&SENTENCES).unwrap()).unwrap();
    let python = |adapter: Option<&str>| -> HashMap<String, Tensor> {
        let (sentences, out) = (path("sentences.json"), path("out.st"));
        let mut arguments = vec!["embed", dir.to_str().unwrap(), &sentences, &out];
        arguments.extend(adapter);
        common::run_python("minilm.py", &arguments);
        Tensor::read_safetensors(&out).unwrap().into_iter().collect()
    };
    let expected = python(None);

    let mut tokenizer = Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    // The file asks for rows of 128; padding does not count.
    tokenizer.with_padding(Some(PaddingParams::default()));
    let (ids, mask) = tokens(&tokenizer);
    assert_eq!(ids, expected["input_ids"]);
    assert_eq!(mask, expected["attention_mask"]);
    let (vs, model) = Encoder::from_pretrained(&dir, Device::Cpu, None).unwrap();
    let ours = no_grad(|| embeddings(&model, &ids, &mask));
    let off = difference(&ours, &expected["embeddings"]);
    assert!(off <= 1e-5, "the embeddings are {off} off");
    // Sentences that mean the same lie close, others do not.
    let alike = ours.matmul(&ours.tr());
    assert!(alike.double_value(&[0, 1]) > 0.5 && alike.double_value(&[0, 5]) < 0.2, "{alike}");

    // The first two are pulled apart.
    let options = AdapterOptions::default().model_type("bert");
    let config = LnTuningConfig::default().target_modules(["LayerNorm"]);
    let tuned = LnTuningModel::with_options(&vs, config, "default", &options).unwrap();
    assert_eq!(tuned.trainable_parameters().trainable, 2 * 13 * 384);
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    let loss = || {
        let both = embeddings(&model, &ids, &mask);
        (both.get(0) * both.get(1)).sum(Kind::Float)
    };
    let first = loss().double_value(&[]);
    for _ in 0..3 {
        opt.backward_step(&loss()).unwrap();
    }
    assert!(loss().double_value(&[]) < first - 0.1, "{first} falls");
    tuned.save_pretrained(path("adapter")).unwrap();
    let ours = no_grad(|| embeddings(&model, &ids, &mask));
    let off = difference(&ours, &python(Some(&path("adapter")))["embeddings"]);
    assert!(off <= 1e-5, "with the adapter the embeddings are {off} off");
    assert!(difference(&ours, &expected["embeddings"]) > 1e-2);
    // The package's file was mapped, and is as it was.
    let untouched = ModelFiles::open(&dir).unwrap().tensor("embeddings.LayerNorm.weight").unwrap();
    assert!(difference(&untouched, &vs.variables()["embeddings.LayerNorm.weight"]) > 0.);
}
