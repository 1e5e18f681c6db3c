//! `generation_config.json` counts for decoders as it does in transformers.

use std::collections::HashMap;
use std::path::Path;

use crate::common;
use ln_tuning::models::{Decoder, GenerateOptions, Inputs, Model};
use ln_tuning::ErrorKind;
use serde_json::{json, Value};
use tch::{Device, Tensor};

type Rows = Vec<Vec<i64>>;

fn rows(tensor: &Tensor) -> Rows {
    Rows::try_from(tensor).unwrap()
}

fn open(dir: &Path) -> Decoder {
    Decoder::from_pretrained(dir, Device::Cpu, None).unwrap().1
}

/// The text of one side of padding, in rows.
fn text(model: &Decoder, reference: &HashMap<String, Tensor>, side: &str) -> Rows {
    let (ids, mask) = (&reference["ids"], &reference["mask"]);
    let padded = ids * mask;
    let inputs =
        if side == "left" { Inputs::new(&padded).attention_mask(mask) } else { Inputs::new(ids) };
    let options = GenerateOptions::default().max_new_tokens(24);
    rows(&model.generate(inputs, &options).unwrap())
}

fn read(path: &Path) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(path.join("reference.st")).unwrap().into_iter().collect()
}

fn options_of_the_caller_win(dir: &Path) {
    let (of_file, without) = (open(dir), open(&dir.with_file_name("llama_ends")));
    let reference = read(dir);
    let ids = &reference["ids"];
    let options = GenerateOptions::default().max_new_tokens(24).stop_tokens([]);
    let text =
        |model: &Decoder, options: &GenerateOptions| rows(&model.generate(ids, options).unwrap());
    let free = text(&without, &options);
    assert_ne!(text(&of_file, &options), free);
    assert_eq!(text(&of_file, &options.clone().repetition_penalty(1.)), free);
    assert_eq!(text(&of_file, &options), text(&without, &options.clone().repetition_penalty(1.9)));
    for penalty in [0., -1., f64::NAN, f64::INFINITY] {
        let options = options.clone().repetition_penalty(penalty);
        let error = of_file.generate(ids, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{penalty}: {error}");
    }
}

fn options_that_are_not_implemented_are_refused(dir: &Path) {
    let ids = Tensor::from_slice2(&[[5_i64, 6, 7]]);
    let path = dir.join("generation_config.json");
    let generate = |key: &str, value: &Value| {
        std::fs::write(&path, json!({ key: value }).to_string()).unwrap();
        let options = GenerateOptions::default().max_new_tokens(2);
        open(dir).generate(&ids, &options)
    };
    for (key, value, idle) in [
        ("no_repeat_ngram_size", json!(3), json!(0)),
        ("encoder_no_repeat_ngram_size", json!(3), json!(0)),
        ("min_length", json!(4), json!(0)),
        ("min_new_tokens", json!(4), json!(null)),
        ("bad_words_ids", json!([[5]]), json!([])),
        ("suppress_tokens", json!([5]), json!([])),
        ("begin_suppress_tokens", json!([5]), json!(null)),
        ("sequence_bias", json!([[[5], 1.]]), json!(null)),
        ("exponential_decay_length_penalty", json!([3, 1.5]), json!(null)),
        ("forced_decoder_ids", json!([[1, 5]]), json!(null)),
        ("forced_bos_token_id", json!(5), json!(null)),
        ("forced_eos_token_id", json!(5), json!(null)),
        ("encoder_repetition_penalty", json!(1.5), json!(1.)),
        ("guidance_scale", json!(1.5), json!(1.)),
        ("num_beams", json!(4), json!(1)),
    ] {
        let error = generate(key, &value).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{key}: {error}");
        assert!(error.to_string().contains(&format!("'{key}'")), "{error}");
        let text = generate(key, &idle).unwrap_or_else(|error| panic!("{key}: {idle}: {error}"));
        assert_eq!(text.size(), [1, 2]);
    }
    // It does not keep a model from being loaded and trained.
    std::fs::write(&path, json!({"no_repeat_ngram_size": 3}).to_string()).unwrap();
    assert_eq!(open(dir).logits(&ids).unwrap().size(), [1, 3, 64]);
    for (text, kind) in [
        ("{", ErrorKind::InvalidConfig),
        (r#"{"eos_token_id": ["a"]}"#, ErrorKind::InvalidConfig),
        (r#"{"repetition_penalty": "a"}"#, ErrorKind::InvalidConfig),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Decoder::from_pretrained(dir, Device::Cpu, None).map(drop).unwrap_err();
        assert_eq!(error.kind(), kind, "{text}: {error}");
    }
}

#[test]
fn generation_config_json_says_the_tokens_that_end_and_pad_and_the_penalty() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    common::run_python("generation.py", &[dir.path().to_str().unwrap()]);
    for model_type in ["llama", "gpt2"] {
        let case = |name: &str| dir.path().join(format!("{model_type}_{name}"));
        for name in ["no_file", "ends", "penalty", "reward", "without_ends"] {
            let (model, reference) = (open(&case(name)), read(&case(name)));
            let eos = match name {
                "ends" | "penalty" => 2,
                _ => 1,
            };
            assert_eq!(model.config().eos_token_ids().len(), eos, "{model_type} {name}");
            let [end, ..] = *model.config().eos_token_ids() else { panic!("no end") };
            let pad = if name == "without_ends" { 3 } else { 0 };
            for side in ["left", "none"] {
                let mut expected = rows(&reference[side]);
                if ["reward", "without_ends"].contains(&name) {
                    // transformers goes on; here the end of config.json counts where the file names none.
                    let ends = |row: &Vec<i64>| row.iter().position(|token| *token == end);
                    for row in &mut expected {
                        let rest = ends(row).map_or(row.len(), |place| place + 1);
                        row[rest..].fill(pad);
                    }
                    let longest = expected.iter().map(|row| ends(row).map_or(24, |at| at + 1));
                    let longest = longest.max().unwrap();
                    expected.iter_mut().for_each(|row| row.truncate(longest));
                }
                let ours = text(&model, &reference, side);
                assert_eq!(ours, expected, "{model_type} {name} {side}");
            }
        }
        assert_ne!(read(&case("penalty"))["none"], read(&case("reward"))["none"]);
    }
    options_of_the_caller_win(&dir.path().join("llama_penalty"));
    options_that_are_not_implemented_are_refused(&dir.path().join("llama_ends"));
}
