//! Tables and patches: what stands before the first block.

use super::{bart, decoder, ids, image_model, masks, named, shift, t5, towers, Case, NAMES};
use crate::nets::{bits, noise, only};
use ln_tuning::models::{
    Clip, Decoder, Dinov2, Encoder, GenerateOptions, Head, Inputs, Model, Seq2Seq, Siglip,
    SiglipVision, TowerClassifier, ViTForImageClassification,
};
use serde_json::json;
use tch::{no_grad, Kind};

/// So far may a convolution of fewer images be off.
const OFF: f64 = 1e-6;

#[test]
fn positions_and_token_types_of_adapters_are_those_of_their_rows() {
    let (ids, masks) = (ids(), masks());
    for (family, table) in [("gpt2", "wpe"), ("opt", "embed_positions")] {
        let mut case: Case<Decoder> =
            Case::new(&decoder(family), Head::LanguageModel, Kind::Float, &[table]);
        for mask in [None, Some(&masks[0])] {
            case.check(&NAMES, 0., |model, mixed| {
                model.logits(named(Inputs::new(&ids).attention_mask(mask), mixed))
            });
        }
        let options = GenerateOptions::default().max_new_tokens(4).stop_tokens([]);
        let inputs = |mixed| named(Inputs::new(&ids).attention_mask(&masks[0]), mixed);
        let expected = case.row_by_row(&NAMES, &|model| model.generate(inputs(false), &options));
        let found = case.model.generate(inputs(true), &options).unwrap();
        assert_eq!(bits(&found), bits(&expected), "{family}");
    }
    let token_types = ids.remainder(2);
    for model_type in ["bert", "roberta", "distilbert"] {
        let config = json!({
            "model_type": model_type, "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "dim": 16,
            "num_attention_heads": 4, "intermediate_size": 24, "hidden_dim": 24, "n_layers": 2, "n_heads": 4,
            "max_position_embeddings": 16, "pad_token_id": 0, "type_vocab_size": 2,
        });
        let head = Head::SequenceClassification;
        let mut case: Case<Encoder> = Case::new(&config, head, Kind::Float, &["embeddings"]);
        for types in [None, Some(&token_types)] {
            let types = types.filter(|_| model_type != "distilbert");
            case.check(&NAMES, OFF, |model, mixed| {
                let inputs = Inputs::new(&ids).attention_mask(&masks[1]).token_type_ids(types);
                model.logits(named(inputs, mixed))
            });
        }
    }
    let decoder_ids = ids.narrow(1, 0, 5).contiguous();
    for (config, table) in [(bart(), "embed_positions"), (t5(), "relative_attention_bias")] {
        let mut case: Case<Seq2Seq> =
            Case::new(&config, Head::LanguageModel, Kind::Float, &[table]);
        let inputs = |mixed| named(Inputs::new(&ids).attention_mask(&masks[1]), mixed);
        case.check(&NAMES, 0., |model, mixed| {
            model.logits(inputs(mixed).decoder_ids(&decoder_ids))
        });
        let options = GenerateOptions::default().max_new_tokens(4).stop_tokens([]);
        let expected = case.row_by_row(&NAMES, &|model| model.generate(inputs(false), &options));
        let found = case.model.generate(inputs(true), &options).unwrap();
        assert_eq!(bits(&found), bits(&expected), "{table}");
    }
}

#[test]
fn patches_and_class_tokens_of_adapters_are_those_of_their_images() {
    let images = noise(&[4, 3, 8, 8], 50);
    let class = Head::ImageClassification;
    let saved = &["embeddings"][..];
    let pixels = |mixed| named(Inputs::images(&images), mixed);
    let mut case =
        Case::<ViTForImageClassification>::new(&image_model("vit"), class, Kind::Float, saved);
    case.check(&NAMES, OFF, |model, mixed| model.logits(pixels(mixed)));
    // Positions are interpolated for images of another size.
    let mut case = Case::<Dinov2>::new(&image_model("dinov2"), class, Kind::Float, saved);
    for images in [&images, &noise(&[4, 3, 12, 8], 51)] {
        case.check(&NAMES, OFF, |model, mixed| model.logits(named(Inputs::images(images), mixed)));
    }
    let ids = ids();
    for model_type in ["clip", "siglip"] {
        let config = towers(model_type);
        Case::<TowerClassifier>::new(&config, class, Kind::Float, saved).check(
            &NAMES,
            OFF,
            |model, mixed| model.logits(pixels(mixed)),
        );
        let texts = |mixed| named(Inputs::new(&ids), mixed);
        if model_type == "clip" {
            let mut case = Case::<Clip>::new(&config, Head::None, Kind::Float, saved);
            case.check(&NAMES, OFF, |model, mixed| model.image_features(pixels(mixed)));
            case.check(&NAMES, OFF, |model, mixed| model.text_features(texts(mixed)));
        } else {
            let mut case = Case::<Siglip>::new(&config, Head::None, Kind::Float, saved);
            case.check(&NAMES, OFF, |model, mixed| model.image_features(pixels(mixed)));
            case.check(&NAMES, OFF, |model, mixed| model.text_features(texts(mixed)));
        }
    }
}

/// The head of SigLIP's tower: its query, its packed projections, its norm and its layers.
#[test]
fn heads_of_adapters_that_look_at_patches_pool_their_images() {
    let images = noise(&[4, 3, 8, 8], 52);
    let pixels = |mixed| named(Inputs::images(&images), mixed);
    let config = image_model("siglip_vision_model");
    for saved in [&["head"][..], &["attention"], &["out_proj"]] {
        let mut case = Case::<SiglipVision>::new(&config, Head::None, Kind::Float, saved);
        case.check(&NAMES, OFF, |model, mixed| model.features(pixels(mixed)));
    }
    // Tuned, beside one that has only norms.
    let mut case = Case::<SiglipVision>::new(&config, Head::None, Kind::Float, &[]);
    case.tuned.add_adapter("looks", only("head.attention")).unwrap();
    shift(&mut case.tuned, "looks", 5);
    let names = ["a", "looks", "__base__", "looks"];
    case.check(&names, OFF, |model, mixed| {
        let inputs = Inputs::images(&images);
        model.features(if mixed { inputs.adapter_names(&names) } else { inputs })
    });
}

#[test]
fn poolers_of_adapters_pool_their_rows() {
    let ids = ids();
    let config = json!({
        "model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 24, "max_position_embeddings": 16,
    });
    let mut case: Case<Encoder> = Case::new(&config, Head::None, Kind::Float, &["pooler"]);
    case.check(&NAMES, OFF, |model, mixed| {
        let hidden = model.hidden_states(named(Inputs::new(&ids), mixed))?;
        if mixed {
            model.pooled_by_row(&hidden, &NAMES)
        } else {
            model.pooled(&hidden)
        }
    });
    let hidden = no_grad(|| case.model.hidden_states(&ids).unwrap());
    let error = case.model.pooled_by_row(&hidden, &["a"]).unwrap_err().to_string();
    assert!(error.contains("1 names") && error.contains("4 rows"), "{error}");
    let error = case.model.pooled_by_row(&hidden, &["a", "b", "z", "a"]).unwrap_err().to_string();
    assert!(error.contains("'z'"), "{error}");
}
