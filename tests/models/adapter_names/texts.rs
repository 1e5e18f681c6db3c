//! Texts: generation, packed documents, losses, and blocks that run again.

use super::{bart, decoder, ids, masks, t5, Case, NAMES};
use crate::nets::bits;
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, GenerateOptions, Head, Inputs, Model, Seq2Seq};
use ln_tuning::recompute::{Blocks, Recompute};
use tch::{no_grad, Kind, Tensor};

#[test]
fn rows_keep_their_adapters_while_texts_grow_and_rows_end() {
    let (ids, masks) = (ids(), masks());
    let ids = &ids * &masks[0];
    for family in ["llama", "gemma3_text", "gpt2", "phi3", "bloom"] {
        let mut case: Case<Decoder> =
            Case::new(&decoder(family), Head::LanguageModel, Kind::Float, &[]);
        let inputs = || Inputs::new(&ids).attention_mask(&masks[0]);
        // Some rows end early, others later.
        let stops = case.row_by_row(&NAMES, &|model| {
            model.generate(inputs(), &GenerateOptions::default().max_new_tokens(8).stop_tokens([]))
        });
        let stop = [stops.int64_value(&[0, 2]), stops.int64_value(&[1, 5])];
        for options in [
            GenerateOptions::default().stop_tokens(stop),
            GenerateOptions::default().stop_tokens([]).repetition_penalty(1.3),
            GenerateOptions::default().stop_tokens([]).temperature(0.8).top_k(5).seed(3),
        ] {
            let options = options.max_new_tokens(8);
            let padded = |new: Tensor| {
                let missing = 8 - new.size()[1];
                new.constant_pad_nd([0, missing])
            };
            let expected =
                case.row_by_row(&NAMES, &|m| Ok(padded(m.generate(inputs(), &options)?)));
            let mut steps = 0;
            let found =
                case.model.generate_streaming(inputs().adapter_names(&NAMES), &options, |tokens| {
                    steps += 1;
                    tokens.len() == 4
                });
            let found = found.unwrap();
            assert_eq!(found.size()[1], steps);
            // A row that has ended is filled up; that of the reference may be longer by the rows beside it.
            let (found, stop) = (padded(found), stop);
            for row in 0..4 {
                let texts =
                    [&found, &expected].map(|all| Vec::<i64>::try_from(all.get(row)).unwrap());
                let end = texts[1].iter().position(|token| stop.contains(token)).unwrap_or(7);
                assert_eq!(texts[0][..=end], texts[1][..=end], "{family} {options:?} row {row}");
            }
        }
    }
    for config in [t5(), bart()] {
        let mut case: Case<Seq2Seq> = Case::new(&config, Head::LanguageModel, Kind::Float, &[]);
        let options = GenerateOptions::default().max_new_tokens(6).stop_tokens([]);
        let inputs = || Inputs::new(&ids).attention_mask(&masks[0]);
        let expected = case.row_by_row(&NAMES, &|model| model.generate(inputs(), &options));
        let found = case.model.generate(inputs().adapter_names(&NAMES), &options).unwrap();
        assert_eq!(bits(&found), bits(&expected), "{}", case.name);
    }
}

#[test]
fn a_callback_that_runs_the_model_has_the_active_adapter() {
    let ids = ids();
    let case: Case<Decoder> = Case::new(&decoder("llama"), Head::LanguageModel, Kind::Float, &[]);
    let plain = no_grad(|| case.model.logits(&ids).unwrap());
    let options = GenerateOptions::default().max_new_tokens(2).stop_tokens([]);
    let inputs = Inputs::new(&ids).adapter_names(&NAMES);
    let _ = case.model.generate_streaming(inputs, &options, |_| {
        assert!(bits(&case.model.logits(&ids).unwrap()) == bits(&plain));
        true
    });
    assert!(bits(&no_grad(|| case.model.logits(&ids).unwrap())) == bits(&plain));
}

#[test]
fn documents_of_a_packed_row_have_adapters_of_their_own() {
    let ids = ids().narrow(0, 0, 2).contiguous();
    let documents = Tensor::from_slice2(&[[0_i64, 0, 1, 1, 1, 2], [7, 7, 7, 7, -1, -1]]);
    let names = ["a", "b", "__base__", "a"];
    let places = [("a", 0, 0, 2), ("b", 0, 2, 3), ("__base__", 0, 5, 1), ("a", 1, 0, 4)];
    for (family, saved) in [
        ("llama", &[][..]),
        ("qwen3", &[]),
        ("gpt2", &[]),
        ("cohere", &[]),
        ("llama", &["lm_head", "embed_tokens"]),
    ] {
        let tolerance = if saved.is_empty() { 0. } else { 1e-6 };
        let mut case: Case<Decoder> =
            Case::new(&decoder(family), Head::LanguageModel, Kind::Float, saved);
        let inputs = || Inputs::new(&ids).documents(&documents);
        let found = no_grad(|| case.model.logits(inputs().adapter_names(&names)).unwrap());
        for (name, row, first, count) in places {
            let part = |x: &Tensor| x.get(row).narrow(0, first, count);
            let expected = part(&case.under(name, &|model| model.logits(inputs())));
            let off = (part(&found) - &expected).abs().max().double_value(&[]);
            assert!(off <= tolerance, "{family} {saved:?} {name}: {off} off");
        }
        // A name for each row counts for all its documents.
        let found = no_grad(|| case.model.logits(inputs().adapter_names(&["b", "a"])).unwrap());
        for (row, name) in [(0, "b"), (1, "a")] {
            let expected = case.under(name, &|model| model.logits(inputs())).get(row);
            let off = (found.get(row) - expected).abs().max().double_value(&[]);
            assert!(off <= tolerance, "{family} {saved:?} row {row}: {off} off");
        }
    }
    let case: Case<Decoder> = Case::new(&decoder("llama"), Head::LanguageModel, Kind::Float, &[]);
    let error = case.model.logits(Inputs::new(&ids).documents(&documents).adapter_names(&["a"; 3]));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("3 names") && error.contains("2 rows with 4 documents"), "{error}");
}

#[test]
fn losses_of_several_batches_have_their_own_rows_and_blocks_that_run_again_have_the_same() {
    let ids = ids();
    let mut case: Case<Decoder> =
        Case::new(&decoder("qwen3"), Head::LanguageModel, Kind::Float, &[]);
    let loss = LinearCrossEntropy::default();
    let batches = [ids.narrow(0, 0, 1), ids.narrow(0, 1, 3)];
    let names = [&["a"][..], &["b", "__base__", "a"]];
    let both: Vec<_> = batches
        .iter()
        .zip(names)
        .map(|(ids, names)| (Inputs::new(ids).adapter_names(names), ids))
        .collect();
    // A leaf below all adapters' norms: the embedding.
    let embed = case.embedding().set_requires_grad(true);
    let plain: Vec<Tensor> =
        both.iter().map(|(inputs, ids)| case.model.loss(*inputs, ids, &loss).unwrap()).collect();
    let expected =
        Tensor::run_backward(&[plain[0].shallow_clone() + &plain[1]], &[&embed], false, false);
    for blocks in [Blocks::All, Blocks::EveryNth(2)] {
        let (losses, found) = Recompute::new(blocks)
            .gradients_of_many(&[embed.shallow_clone()], |tape| {
                case.model.losses_with(&both, &loss, tape)
            })
            .unwrap();
        for (found, expected) in losses.iter().zip(&plain) {
            assert!(bits(found) == bits(expected), "{blocks:?}");
        }
        let off = (&found[0] - &expected[0]).abs().max().double_value(&[]);
        assert!(off < 1e-7, "{blocks:?}: the gradient is {off} off");
    }
    let _ = embed.set_requires_grad(false);
    let alone = case.under("a", &|model| model.loss(&batches[0], &batches[0], &loss));
    assert!(bits(&alone) == bits(&plain[0].detach()));
}
