//! A trace of a model (`CModule::create_by_tracing`) gives for other inputs of the same shapes what the model gives, or is
//! refused.

use std::path::Path;

use crate::adapter_names::seeing::{config as seeing, ids as seeing_ids};
use crate::adapter_names::{
    bart, decoder, encoder, ids, image_model, masks, t5, towers, Case, NAMES,
};
use crate::nets::{self, noise};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{
    Clip, Decoder, DecoderConfig, Dinov2, Encoder, EncoderConfig, Form, Frozen, GenerateOptions,
    Head, ImageTextToText, Inputs, Load, Model, ModelConfig, Place, Seq2Seq, Siglip,
    ViTForImageClassification,
};
use ln_tuning::{pretrained, Error, ErrorKind, Result};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{CModule, Device, Kind, Tensor};

/// Other ids, `[4, 6]`.
fn others() -> Tensor {
    let ids = Tensor::arange(4 * 6, (Kind::Int64, Device::Cpu)) * 11 + 8;
    ids.remainder(36).view([4, 6]) + 2
}

/// The module that a trace of `run` with these inputs makes.
fn trace(inputs: &[Tensor], run: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Result<CModule> {
    let mut error: Option<Error> = None;
    let mut closure = |inputs: &[Tensor]| {
        let found = run(inputs);
        vec![found.unwrap_or_else(|refused| {
            error = Some(refused);
            inputs[0].shallow_clone()
        })]
    };
    let module = CModule::create_by_tracing("model", "forward", inputs, &mut closure);
    // An error of libtorch ends a trace.
    match error {
        Some(error) => Err(error),
        None => Ok(module?),
    }
}

/// A trace with these inputs, and one more when the model has kept what it keeps, compute what the model makes of others.
fn check(name: &str, inputs: [&[Tensor]; 2], run: &dyn Fn(&[Tensor]) -> Result<Tensor>) {
    for [traced, other] in [inputs, [inputs[1], inputs[0]]] {
        let module = trace(traced, run).unwrap_or_else(|error| panic!("{name}: {error}"));
        let [found, of_traced] = [other, traced].map(|inputs| module.forward_ts(inputs).unwrap());
        let expected = run(other).unwrap().to_kind(Kind::Float);
        let off = |found: &Tensor| (found.to_kind(Kind::Float) - &expected).abs().max();
        let scale = expected.abs().max().double_value(&[]);
        let limit = if found.kind() == Kind::Float { 1e-5 } else { 0.05 } * scale;
        let [off, apart] = [&found, &of_traced].map(|found| off(found).double_value(&[]));
        assert!(off <= limit, "{name}: {off} off, of {scale}");
        assert!(apart > 4. * limit, "{name}: other inputs give the same, {apart} of {scale}");
    }
}

/// A model whose tensors do not train: a trace takes no others.
fn frozen<M: Model>(config: &Value, head: Head, kind: Kind) -> M {
    tch::set_num_threads(1);
    let config = M::Config::from_value(config).unwrap().with_head(head).unwrap();
    let mut vs = VarStore::new(Device::Cpu);
    let model = M::new(&vs.root(), &config).unwrap();
    nets::fill(&vs, 0.2);
    vs.set_kind(kind);
    vs.freeze();
    model
}

/// The same with adapters.
fn with_adapters() -> Case<Decoder> {
    let mut case = Case::new(&decoder("llama"), Head::LanguageModel, Kind::Float, &[]);
    case.vs.freeze();
    case
}

#[test]
fn a_trace_of_a_decoder_of_any_family_follows_ids_and_masks() {
    let ([left, right], [ids, others]) = (masks(), [ids(), others()]);
    let plain = [std::slice::from_ref(&ids), std::slice::from_ref(&others)];
    let padded = [&[ids.copy(), left][..], &[others.copy(), right]];
    for family in DecoderConfig::model_types() {
        let model = frozen::<Decoder>(&decoder(family), Head::LanguageModel, Kind::Float);
        check(family, padded, &|of| model.logits(Inputs::new(&of[0]).attention_mask(&of[1])));
        check(family, plain, &|of| model.logits(&of[0]));
    }
    for family in ["llama", "gemma3_text", "gpt2", "bloom"] {
        let model = frozen::<Decoder>(&decoder(family), Head::LanguageModel, Kind::BFloat16);
        check(family, plain, &|of| model.logits(&of[0]));
    }
    // Ropes that turn otherwise behind so many places, of which the ids have more.
    let short: Vec<f64> = vec![1.2; 8];
    for scaling in [
        json!({"rope_type": "dynamic", "factor": 4.}),
        json!({"rope_type": "yarn", "factor": 4., "original_max_position_embeddings": 4}),
        json!({
            "rope_type": "longrope", "short_factor": short, "long_factor": vec![2.5; 8], "factor": 4.,
            "original_max_position_embeddings": 4,
        }),
    ] {
        let mut config = decoder("llama");
        (config["max_position_embeddings"], config["head_dim"]) = (json!(4), json!(16));
        config["partial_rotary_factor"] = json!(null);
        config["rope_scaling"] = scaling;
        let model = frozen::<Decoder>(&config, Head::LanguageModel, Kind::Float);
        check("rope", plain, &|of| model.logits(&of[0]));
    }
    // Rows of several documents; the label of a row's last token, which is not padding.
    let [packed, otherwise] = [[0_i64, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 2]]
        .map(|row| Tensor::from_slice(&row).expand([4, 6], false).contiguous());
    let documents = [&[ids.copy(), packed][..], &[others.copy(), otherwise]];
    for family in ["llama", "gpt2"] {
        let model = frozen::<Decoder>(&decoder(family), Head::LanguageModel, Kind::Float);
        check(family, documents, &|of| model.logits(Inputs::new(&of[0]).documents(&of[1])));
        let model = frozen::<Decoder>(&decoder(family), Head::SequenceClassification, Kind::Float);
        let padded = [&ids, &others].map(|ids| [ids * &masks()[1]]);
        check(family, [&padded[0], &padded[1]], &|of| model.logits(&of[0]));
    }
    // Matrices that the crate multiplies with in ways of its own, by few rows and by many.
    let mut wide = decoder("llama");
    for (key, size) in [("hidden_size", 256), ("intermediate_size", 512), ("head_dim", 64)] {
        wide[key] = json!(size);
    }
    let many = [&ids, &others].map(|ids| [ids.repeat([4, 1])]);
    for kind in [Kind::Float, Kind::BFloat16] {
        let model = frozen::<Decoder>(&wide, Head::LanguageModel, kind);
        let few = [ids.narrow(0, 0, 1), others.narrow(0, 0, 1)];
        let few = [std::slice::from_ref(&few[0]), std::slice::from_ref(&few[1])];
        for inputs in [few, [&many[0], &many[1]]] {
            check("wide", inputs, &|of| model.logits(&of[0]));
        }
    }
}

#[test]
fn a_trace_of_encoders_and_of_models_of_images_follows_their_inputs() {
    let ([_, right], [ids, others]) = (masks(), [ids(), others()]);
    let padded = [&[ids.copy(), right.copy()][..], &[others.copy(), right.copy()]];
    for model_type in EncoderConfig::model_types() {
        for head in [Head::MaskedLm, Head::SequenceClassification] {
            let model = frozen::<Encoder>(&encoder(model_type), head, Kind::Float);
            check(model_type, padded, &|of| {
                model.logits(Inputs::new(&of[0]).attention_mask(&of[1]))
            });
        }
    }
    for config in [t5(), bart()] {
        let model = frozen::<Seq2Seq>(&config, Head::LanguageModel, Kind::Float);
        check(model.model_type(), padded, &|of| {
            let decoder_ids = of[0].narrow(1, 0, 5);
            let inputs = Inputs::new(&of[0]).attention_mask(&of[1]).decoder_ids(&decoder_ids);
            model.logits(inputs)
        });
    }
    let [image, other] = [50, 51].map(|seed| [noise(&[4, 3, 8, 8], seed)]);
    let (images, class) = ([&image[..], &other[..]], Head::ImageClassification);
    let vit = frozen::<ViTForImageClassification>(&image_model("vit"), class, Kind::Float);
    check("vit", images, &|of| vit.logits(&of[0]));
    let dinov2 = frozen::<Dinov2>(&image_model("dinov2"), class, Kind::Float);
    check("dinov2", images, &|of| dinov2.logits(&of[0]));
    let both = [&[ids, image[0].copy()][..], &[others, other[0].copy()]];
    let clip = frozen::<Clip>(&towers("clip"), Head::None, Kind::Float);
    check("clip", both, &|of| clip.logits(Inputs::new(&of[0]).pixel_values(&of[1])));
    let siglip = frozen::<Siglip>(&towers("siglip"), Head::None, Kind::Float);
    check("siglip", both, &|of| siglip.logits(Inputs::new(&of[0]).pixel_values(&of[1])));
}

#[test]
fn a_trace_keeps_the_adapters_of_rows_and_reads_matrices_where_they_are_kept() {
    let [ids, others] = [[ids()], [others()]];
    let inputs = [&ids[..], &others[..]];
    let case = with_adapters();
    check("rows", inputs, &|of| case.model.logits(Inputs::new(&of[0]).adapter_names(&NAMES)));
    let (dir, config) = (tempfile::tempdir().unwrap(), decoder("llama"));
    pretrained::save(&case.vs, dir.path(), &config.to_string()).unwrap();
    let loaded = |frozen: Frozen, kind: Kind| {
        let load = Load::on(Device::Cpu).kind(kind).frozen(frozen);
        let (mut vs, model) = Decoder::from_pretrained_with(dir.path(), &load).unwrap();
        vs.freeze();
        model
    };
    for kind in [Kind::Float, Kind::BFloat16] {
        #[cfg(target_os = "linux")]
        let places = [Place::Mapped, Place::Streamed];
        #[cfg(not(target_os = "linux"))]
        let places = [Place::Mapped];
        for place in places {
            let model = loaded(Frozen::default().place(place), kind);
            check(&format!("{place:?}"), inputs, &|of| model.logits(&of[0]));
        }
        #[cfg(feature = "kernels")]
        {
            let model = loaded(Frozen::default().form(Form::Packed), kind);
            check("packed", inputs, &|of| model.logits(&of[0]));
        }
    }
    for form in [Form::Int8, Form::Nf4] {
        let model = loaded(Frozen::default().form(form), Kind::Float);
        let error = trace(&ids, &|of| model.logits(&of[0])).map(drop).unwrap_err();
        assert!(error.to_string().contains("a matrix in few bits cannot be part"), "{error}");
    }
}

#[test]
fn what_a_trace_would_keep_of_its_inputs_is_refused_and_the_next_trace_is_right() {
    let [ids, others] = [ids(), others()];
    let model = frozen::<Decoder>(&decoder("llama"), Head::LanguageModel, Kind::Float);
    let documents = Tensor::from_slice(&[0_i64, 0, 1, 1, 2, 2]).expand([4, 6], false);
    let refused = |named: &str, inputs: &[Tensor], run: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
        let _ = run(inputs).unwrap_or_else(|error| panic!("{named}: {error}"));
        let error = trace(inputs, run).map(drop).unwrap_err();
        let text = error.to_string();
        assert!(error.kind() == ErrorKind::Unsupported && text.contains(named), "{text}");
    };
    let options = GenerateOptions::default().max_new_tokens(2);
    let only = [ids.copy()];
    refused("generated tokens", &only, &|of| model.generate(&of[0], &options));
    refused("targets of a loss", &only, &|of| {
        model.loss(&of[0], &of[0], &LinearCrossEntropy::default())
    });
    let case = with_adapters();
    let names: Vec<&str> = NAMES.iter().cycle().take(12).copied().collect();
    refused("documents of adapters", &[ids.copy(), documents], &|of| {
        case.model.logits(Inputs::new(&of[0]).documents(&of[1]).adapter_names(&names))
    });
    // Images of one size stand where the ids say, images of any size do not.
    let image = frozen::<ImageTextToText>(&seeing("gemma3", 4), Head::LanguageModel, Kind::Float);
    let [tokens, mask] = seeing_ids(&[4; 4]);
    let moved = tokens.flip([1]).where_self(&mask.flip([1]).eq(1), &tokens.zeros_like());
    let images = [5, 6].map(|seed| noise(&[4, 3, 8, 8], seed));
    let inputs = [
        &[tokens.copy(), mask.copy(), images[0].copy()][..],
        &[moved, mask.flip([1]), images[1].copy()],
    ];
    check("gemma3", inputs, &|of| {
        let inputs = Inputs::new(&of[0]).attention_mask(&of[1]).pixel_values(&of[2]);
        image.logits(inputs)
    });
    let qwen = frozen::<ImageTextToText>(&seeing("qwen3_vl", 4), Head::LanguageModel, Kind::Float);
    let [tokens, mask] = seeing_ids(&[4, 3, 6, 8]);
    let grids = Tensor::from_slice2(&[[1_i64, 4, 4], [1, 2, 6], [2, 6, 2], [1, 4, 8]]);
    let patches = noise(&[16 + 12 + 24 + 32, 3 * 2 * 2 * 2], 7);
    refused("image_grid_thw", &[tokens, mask, patches, grids], &|of| {
        let inputs = Inputs::new(&of[0]).attention_mask(&of[1]);
        qwen.logits(inputs.pixel_values(&of[2]).image_grid_thw(&of[3]))
    });
    let inputs = [std::slice::from_ref(&ids), std::slice::from_ref(&others)];
    check("llama", inputs, &|of| model.logits(&of[0]));
}

/// tch makes a tensor of numbers as one of zeros, which it writes to behind the trace's back.
#[test]
fn a_users_own_numbers_are_made_before_the_trace() {
    let number = Tensor::from_slice(&[2_f32, 3.]);
    let module =
        trace(&[Tensor::ones([2], (Kind::Float, Device::Cpu))], &|of| Ok(of[0].f_mul(&number)?));
    let other = Tensor::from_slice(&[5_f32, 7.]);
    let found = module.unwrap().forward_ts(&[other]).unwrap();
    assert_eq!(found, Tensor::from_slice(&[10_f32, 21.]));
}

#[test]
fn a_trace_of_a_model_that_trains_is_refused_and_a_saved_one_needs_no_model() {
    let [ids, others] = [ids(), others()];
    let dir = tempfile::tempdir().unwrap();
    let path: &Path = &dir.path().join("model.pt");
    let expected = {
        let mut case: Case<Decoder> =
            Case::new(&decoder("llama"), Head::LanguageModel, Kind::Float, &[]);
        let run = |model: &Decoder| trace(&[ids.copy()], &|of| model.logits(&of[0]));
        let error = run(&case.model).map(drop).unwrap_err();
        assert!(error.to_string().contains("requires grad"), "{error}");
        case.vs.freeze();
        run(&case.model).unwrap().save(path).unwrap();
        case.model.logits(&others).unwrap()
    };
    let found = CModule::load(path).unwrap().forward_ts(&[others]).unwrap();
    assert!(found.allclose(&expected, 1e-5, 1e-5, false));
}
