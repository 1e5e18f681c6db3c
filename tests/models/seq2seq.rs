//! Encoder-decoders compute what transformers computes, forwards, backwards and token by token.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use crate::common;
use ln_tuning::models::{GenerateOptions, Inputs, Model, ModelConfig, Seq2Seq, Seq2SeqConfig};
use ln_tuning::{AdamW, AdapterOptions, ErrorKind, LnTuningConfig, LnTuningModel};
use serde_json::{json, Value};
use tch::{nn::VarStore, Device, Kind, Tensor};

const VOCABULARY: i64 = 48;

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

fn open(dir: &Path) -> (VarStore, Seq2Seq) {
    Seq2Seq::from_pretrained(dir, Device::Cpu, None).unwrap()
}

fn read(path: PathBuf) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn encoder_decoders_are_those_of_transformers() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    common::run_python("seq2seq.py", &[dir.path().to_str().unwrap()]);
    let mut cases = BTreeSet::new();
    for case in std::fs::read_dir(dir.path()).unwrap() {
        let case = case.unwrap().path();
        let reference: HashMap<String, Tensor> =
            Tensor::read_safetensors(case.join("reference.st")).unwrap().into_iter().collect();
        logits_and_gradients(&case, &reference);
        tokens(&case, &reference);
        tune(&case, &reference);
        cases.insert(case.file_name().unwrap().to_str().unwrap().to_owned());
    }
    assert_eq!(cases.len(), 11, "{cases:?}");
    dropout(&dir.path().join("t5"));
    dropout(&dir.path().join("bart"));
    half_precision(&dir.path().join("t5_v1_1"));
    refusals(dir.path());
}

fn logits_and_gradients(case: &Path, reference: &HashMap<String, Tensor>) {
    let (vs, model) = open(case);
    let of_python = reference.keys().filter_map(|key| key.strip_prefix("none.grad."));
    let of_python: BTreeSet<String> = of_python.map(str::to_owned).collect();
    let trainable = vs.variables().into_iter().filter(|(_, tensor)| tensor.requires_grad());
    let trainable: BTreeSet<String> = trainable.map(|(name, _)| name).collect();
    assert_eq!(trainable, of_python, "{case:?}: the variables are the live model's parameters");
    let ids = &reference["input_ids"];
    let shifted = model.shift_right(&reference["labels"]).unwrap();
    assert_eq!(shifted, reference["decoder_input_ids"], "{case:?}");
    for side in ["right", "left", "none"] {
        let (vs, model) = open(case);
        let of = |what: &str| &reference[&format!("{side}.{what}")];
        let given = |what: &str| (side != "none").then(|| of(what));
        let masks = (given("mask"), given("decoder_mask"));
        let logits = model
            .logits(
                Inputs::new(ids)
                    .attention_mask(masks.0)
                    .decoder_ids(&shifted)
                    .decoder_attention_mask(masks.1),
            )
            .unwrap();
        // Rows of padding do not count.
        let shown = of("decoder_mask").unsqueeze(-1).to_kind(Kind::Float);
        let expected = of("logits") * &shown;
        let off = difference(&(&logits * &shown), &expected);
        assert!(off <= 1e-4, "{case:?} {side}: logits are {off} off");
        assert!(expected.abs().max().double_value(&[]) > 0.1);
        (&logits * &shown).square().mean(Kind::Float).backward();
        for (name, variable) in vs.variables().iter().filter(|(_, tensor)| tensor.requires_grad()) {
            let expected = of(&format!("grad.{name}"));
            let gradient = match variable.grad() {
                gradient if gradient.defined() => gradient,
                _ => expected.zeros_like(),
            };
            let scale = expected.abs().max().double_value(&[]).max(1e-2);
            let off = difference(&gradient, expected) / scale;
            assert!(off <= 1e-4, "{case:?} {side}: the gradient of {name} is {off} off");
        }
    }
}

fn new_tokens(count: i64) -> GenerateOptions {
    GenerateOptions::default().max_new_tokens(count)
}

/// Greedy generation with padding, without and with rows that end early.
fn tokens(case: &Path, reference: &HashMap<String, Tensor>) {
    let path = case.join("generation_config.json");
    let mut options = read(path.clone());
    let (ids, mask) = (&reference["free.ids"], &reference["left.mask"]);
    for run in ["free", "early"] {
        let ends = Vec::<i64>::try_from(&reference[&format!("{run}.eos")]).unwrap();
        options["eos_token_id"] = if run == "free" { json!(ends[0]) } else { json!(ends) };
        std::fs::write(&path, options.to_string()).unwrap();
        let (_, model) = open(case);
        let ours = model.generate(Inputs::new(ids).attention_mask(mask), &new_tokens(32)).unwrap();
        let expected = &reference[run];
        assert_eq!(&ours, expected, "{case:?} {run}");
        // The cache makes no difference to what the whole sequence says.
        let start = model.shift_right(&expected.narrow(1, 0, 32.min(expected.size()[1]))).unwrap();
        let whole =
            model.logits(Inputs::new(ids).attention_mask(mask).decoder_ids(&start)).unwrap();
        let first = whole.select(1, 1).argmax(-1, false);
        assert_eq!(first, expected.select(1, 1), "{case:?} {run}");
    }
    let (_, model) = open(case);
    let none = model.generate(Inputs::new(ids).attention_mask(mask), &new_tokens(0)).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::InvalidArgument);
    options["no_repeat_ngram_size"] = json!(3);
    std::fs::write(&path, options.to_string()).unwrap();
    let error =
        open(case).1.generate(Inputs::new(ids).attention_mask(mask), &new_tokens(4)).unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unsupported && error.to_string().contains("ngram"),
        "{error}"
    );
}

/// LN tuning of the checkpoint in bf16: the loss falls, and PEFT's table picks the norms.
fn tune(case: &Path, reference: &HashMap<String, Tensor>) {
    let (vs, model) = Seq2Seq::from_pretrained(case, Device::Cpu, Kind::BFloat16).unwrap();
    assert_eq!(model.kind(), Kind::BFloat16);
    // A buffer that the checkpoint lacks is made in f32.
    assert!(vs.trainable_variables().iter().all(|tensor| tensor.kind() == Kind::BFloat16));
    let options = AdapterOptions::default().model_type(model.config().model_type());
    let tuned = LnTuningModel::with_options(&vs, LnTuningConfig::default(), "default", &options);
    let tuned = tuned.unwrap();
    let selected = vs.variables().into_iter().filter(|(_, tensor)| tensor.requires_grad());
    let selected: BTreeSet<String> = selected.map(|(name, _)| name).collect();
    let suffixes = match model.config().model_type() {
        "bart" => ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"].to_vec(),
        _ => ["layer_norm", "final_layer_norm"].to_vec(),
    };
    let of_peft = |name: &String| {
        let module = name.rsplit_once('.').map_or("", |(module, _)| module);
        suffixes.contains(&module.rsplit('.').next().unwrap_or(""))
    };
    let expected: BTreeSet<String> = vs.variables().into_keys().filter(of_peft).collect();
    assert!(selected == expected && !expected.is_empty(), "{case:?}");
    let labels = &reference["labels"];
    let shifted = model.shift_right(labels).unwrap();
    let loss = || {
        let logits =
            model.logits(Inputs::new(&reference["input_ids"]).decoder_ids(&shifted)).unwrap();
        let logits = logits.to_kind(Kind::Float).view([-1, VOCABULARY]);
        logits.cross_entropy_loss::<Tensor>(
            &labels.reshape([-1]),
            None,
            tch::Reduction::Mean,
            -100,
            0.,
        )
    };
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    let first = loss().double_value(&[]);
    for _ in 0..15 {
        opt.backward_step_clip_norm(&loss(), 1.).unwrap();
    }
    let last = loss().double_value(&[]);
    assert!(last < first - 0.01, "{case:?}: the loss falls, from {first} to {last}");
}

/// While training every kind of dropout is applied, and only then.
fn dropout(case: &Path) {
    let ids = Tensor::arange(12, (Kind::Int64, Device::Cpu)).view([2, 6]) + 3;
    let path = case.join("config.json");
    let config = read(path.clone());
    let differs = |changes: &[(&str, Value)]| {
        let mut changed = config.clone();
        for key in ["dropout", "dropout_rate", "attention_dropout", "activation_dropout"] {
            if changed.get(key).is_some() {
                changed[key] = json!(0.);
            }
        }
        changes.iter().for_each(|(key, value)| changed[*key] = value.clone());
        std::fs::write(&path, changed.to_string()).unwrap();
        let (_, model) = open(case);
        let logits =
            |train| model.logits(Inputs::new(&ids).decoder_ids(&ids).train(train)).unwrap();
        assert_eq!(difference(&logits(false), &logits(false)), 0.);
        difference(&logits(false), &logits(true)) > 1e-3
    };
    assert!(!differs(&[]), "{case:?}: without dropout training computes the same");
    for key in ["dropout", "dropout_rate", "attention_dropout", "activation_dropout"] {
        if config.get(key).is_some() {
            assert!(differs(&[(key, json!(0.5))]), "{case:?}: {key} is applied");
        }
    }
    for key in ["encoder_layerdrop", "decoder_layerdrop"] {
        if config.get(key).is_some() {
            assert!(differs(&[(key, json!(1.))]), "{case:?}: {key} is applied");
        }
    }
    std::fs::write(&path, config.to_string()).unwrap();
}

/// T5 in f16 keeps the outer layers of its MLPs in f32, and stays close to f32.
fn half_precision(case: &Path) {
    let ids = Tensor::arange(12, (Kind::Int64, Device::Cpu)).view([2, 6]) + 3;
    let (vs, half) = Seq2Seq::from_pretrained(case, Device::Cpu, Kind::Half).unwrap();
    for (name, tensor) in vs.variables() {
        let kind = if name.ends_with("wo.weight") { Kind::Float } else { Kind::Half };
        assert_eq!(tensor.kind(), kind, "{name}");
    }
    let logits = half.logits(Inputs::new(&ids).decoder_ids(&ids)).unwrap().to_kind(Kind::Float);
    let expected = open(case).1.logits(Inputs::new(&ids).decoder_ids(&ids)).unwrap();
    let scale = expected.abs().max().double_value(&[]);
    assert!(difference(&logits, &expected) < 0.02 * scale);
}

/// Checkpoints and inputs that are not what they should be.
fn refusals(dir: &Path) {
    for (case, list) in [
        (
            "t5",
            vec![
                (json!({"num_layers": 4, "num_decoder_layers": 2}), ErrorKind::MissingKeys),
                (json!({"num_decoder_layers": 1}), ErrorKind::UnexpectedKeys),
                (
                    json!({"feed_forward_proj": "gated-relu", "is_gated_act": true}),
                    ErrorKind::MissingKeys,
                ),
                (json!({"d_ff": 41}), ErrorKind::ShapeMismatch),
                (json!({"vocab_size": 47}), ErrorKind::ShapeMismatch),
                (json!({"model_type": "umt5"}), ErrorKind::Unsupported),
                (
                    json!({"feed_forward_proj": "mish", "dense_act_fn": null}),
                    ErrorKind::Unsupported,
                ),
                (json!({"feed_forward_proj": "gated-gelu-new"}), ErrorKind::InvalidConfig),
                (json!({"relative_attention_num_buckets": 2}), ErrorKind::InvalidConfig),
                (json!({"relative_attention_max_distance": 4}), ErrorKind::InvalidConfig),
                (json!({"quantization_config": {"bits": 4}}), ErrorKind::Unsupported),
                (json!({"d_model": null}), ErrorKind::InvalidConfig),
                (json!({"num_heads": 0}), ErrorKind::InvalidConfig),
                (json!({"eos_token_id": ["</s>"]}), ErrorKind::InvalidConfig),
            ],
        ),
        (
            "bart",
            vec![
                (json!({"encoder_layers": 4}), ErrorKind::MissingKeys),
                (json!({"decoder_layers": 1}), ErrorKind::UnexpectedKeys),
                (json!({"tie_word_embeddings": false}), ErrorKind::MissingKeys),
                (json!({"max_position_embeddings": 41}), ErrorKind::ShapeMismatch),
                (json!({"activation_function": "mish"}), ErrorKind::Unsupported),
                (json!({"decoder_attention_heads": 5}), ErrorKind::InvalidConfig),
                (json!({"scale_embedding": "yes"}), ErrorKind::InvalidConfig),
            ],
        ),
    ] {
        let case = dir.join(case);
        let path = case.join("config.json");
        let config = read(path.clone());
        for (changes, kind) in list {
            let mut changed = config.clone();
            for (key, value) in changes.as_object().unwrap() {
                changed[key] = value.clone();
            }
            std::fs::write(&path, changed.to_string()).unwrap();
            let error = Seq2Seq::from_pretrained(&case, Device::Cpu, None).map(drop).unwrap_err();
            assert_eq!(error.kind(), kind, "{changes}: {error}");
            if changes.get("model_type").is_some() {
                assert!(error.to_string().contains("bart, mt5, t5"), "{error}");
            }
        }
        std::fs::write(&path, config.to_string()).unwrap();
    }
    let (_, model) = open(&dir.join("bart"));
    let ids = Tensor::zeros([2, 3], (Kind::Int64, Device::Cpu));
    let short = ids.narrow(1, 0, 2);
    let long = Tensor::zeros([2, 41], (Kind::Int64, Device::Cpu));
    for (ids, mask, decoder_ids, kind) in [
        (&ids.get(0), None, &ids, ErrorKind::ShapeMismatch),
        (&ids, Some(&short), &ids, ErrorKind::ShapeMismatch),
        (&ids, None, &ids.narrow(0, 0, 1), ErrorKind::ShapeMismatch),
        (&ids, None, &ids.get(0), ErrorKind::ShapeMismatch),
        (&long, None, &ids, ErrorKind::InvalidArgument),
        (&ids, None, &long, ErrorKind::InvalidArgument),
        (&(&ids + VOCABULARY), None, &ids, ErrorKind::Torch),
    ] {
        assert_eq!(
            model
                .logits(Inputs::new(ids).attention_mask(mask).decoder_ids(decoder_ids))
                .unwrap_err()
                .kind(),
            kind
        );
    }
    assert_eq!(model.shift_right(&ids.get(0)).unwrap_err().kind(), ErrorKind::ShapeMismatch);
    // The test before set an option of generation that is refused.
    std::fs::remove_file(dir.join("bart/generation_config.json")).unwrap();
    let (_, model) = open(&dir.join("bart"));
    assert_eq!(
        model.generate(&ids, &new_tokens(41)).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    let forced = model.generate(&ids, &new_tokens(5)).unwrap();
    assert_eq!(forced.select(1, -1), Tensor::from_slice(&[2i64, 2]), "config.json forces the end");
}

#[test]
fn a_model_can_be_made_without_a_checkpoint() {
    let t5 = json!({
        "model_type": "t5", "vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2,
    });
    let bart = json!({
        "model_type": "bart", "vocab_size": 20, "d_model": 8, "encoder_layers": 1, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 4, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
    });
    for (config, variables) in [(t5, 47), (bart, 76)] {
        let config = Seq2SeqConfig::from_value(&config).unwrap();
        let vs = VarStore::new(Device::Cpu);
        let model = Seq2Seq::new(&vs.root(), &config).unwrap();
        assert_eq!(vs.len(), variables);
        let ids = Tensor::arange(6, (Kind::Int64, Device::Cpu)).view([2, 3]);
        let logits = |model: &Seq2Seq| model.logits(Inputs::new(&ids).decoder_ids(&ids)).unwrap();
        assert_eq!(logits(&model).size(), [2, 3, 20]);
        // A second model on the same variables is the same model.
        let again = Seq2Seq::new(&vs.root(), &config).unwrap();
        assert_eq!(vs.len(), variables);
        assert_eq!(difference(&logits(&again), &logits(&model)), 0.);
        let generated = model.generate(&ids, &new_tokens(3));
        match config.model_type() {
            "t5" => assert_eq!(generated.unwrap_err().kind(), ErrorKind::InvalidConfig),
            _ => assert_eq!(generated.unwrap().size()[0], 2),
        }
    }
}
