//! Modules that are no norms compute the rows of each adapter by themselves.

use super::{bart, decoder, ids, masks, named, t5, Case, NAMES};
use ln_tuning::loss::{LinearCrossEntropy, Reduction};
use ln_tuning::models::{Decoder, Encoder, Head, Inputs, Model, Seq2Seq};
use serde_json::json;
use tch::{no_grad, Kind};

/// So far may a product of fewer rows be off.
const OFF: f64 = 1e-6;

#[test]
fn heads_and_embeddings_of_adapters_compute_their_rows_alone() {
    let (ids, masks) = (ids(), masks());
    for (family, saved) in [
        ("llama", &["lm_head"][..]),
        ("llama", &["embed_tokens", "lm_head"]),
        // Tied, but the one that an adapter has is its own.
        ("gemma", &["embed_tokens"]),
        ("gpt2", &["wte", "c_fc"]),
        ("cohere", &["q_proj"]),
        ("phi", &["lm_head"]),
    ] {
        let mut case: Case<Decoder> =
            Case::new(&decoder(family), Head::LanguageModel, Kind::Float, saved);
        for mask in [None, Some(&masks[0])] {
            case.check(&NAMES, OFF, |model, mixed| {
                model.logits(named(Inputs::new(&ids).attention_mask(mask), mixed))
            });
        }
        // The loss of some rows is that of these rows alone.
        let sum = LinearCrossEntropy::default().reduction(Reduction::Sum);
        let apart: f64 = NAMES
            .iter()
            .enumerate()
            .map(|(row, name)| {
                let row = ids.narrow(0, row as i64, 1);
                case.under(name, &|model| model.loss(&row, &row, &sum)).double_value(&[])
            })
            .sum();
        let targets = (4 * 5) as f64;
        for (reduction, expected) in [
            (Reduction::Sum, apart),
            (Reduction::Mean, apart / targets),
            (Reduction::SumOver(7), apart / 7.),
        ] {
            let loss = LinearCrossEntropy::default().reduction(reduction);
            let inputs = Inputs::new(&ids).adapter_names(&NAMES);
            let found = no_grad(|| case.model.loss(inputs, &ids, &loss).unwrap()).double_value(&[]);
            assert!((found - expected).abs() <= 1e-5 * expected, "{family} {reduction:?}");
        }
    }
}

#[test]
fn classifiers_of_adapters_compute_their_rows_alone() {
    let (ids, masks) = (ids(), masks());
    let mut case: Case<Decoder> =
        Case::new(&decoder("llama"), Head::SequenceClassification, Kind::Float, &["score"]);
    case.check(&NAMES, OFF, |model, mixed| {
        model.logits(named(Inputs::new(&ids).attention_mask(&masks[1]), mixed))
    });
    let bert = json!({
        "model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 24, "max_position_embeddings": 16,
    });
    for (head, saved) in [
        (Head::SequenceClassification, &["classifier", "pooler"][..]),
        (Head::TokenClassification, &["classifier"]),
        (Head::MaskedLm, &["cls"]),
        (Head::MaskedLm, &["word_embeddings"]),
    ] {
        let mut case: Case<Encoder> = Case::new(&bert, head, Kind::Float, saved);
        case.check(&NAMES, OFF, |model, mixed| model.logits(named(Inputs::new(&ids), mixed)));
    }
    let decoder_ids = ids.narrow(1, 0, 5).contiguous();
    for (config, saved) in [(t5(), &["shared", "wo"][..]), (bart(), &["shared", "fc1"])] {
        let mut case: Case<Seq2Seq> = Case::new(&config, Head::LanguageModel, Kind::Float, saved);
        case.check(&NAMES, OFF, |model, mixed| {
            model.logits(named(Inputs::new(&ids).decoder_ids(&decoder_ids), mixed))
        });
    }
}
