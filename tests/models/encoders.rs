//! Text encoders compute what transformers computes, forwards and backwards, and read and write its directories.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::common;
use ln_tuning::models::{Encoder, EncoderConfig, Head, Inputs, Load, Model, ModelConfig};
use ln_tuning::{pretrained, Error, ErrorKind};
use serde_json::{json, Value};
use tch::{nn::VarStore, Device, Kind, Tensor};

type Tensors = HashMap<String, Tensor>;

const HEADS: [(&str, Head); 4] = [
    ("base", Head::None),
    ("masked_lm", Head::MaskedLm),
    ("sequence", Head::SequenceClassification),
    ("token", Head::TokenClassification),
];

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

fn read(path: &Path) -> Tensors {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

fn write(tensors: &Tensors, path: &Path) {
    let named: Vec<_> = tensors.iter().collect();
    Tensor::write_safetensors(&named, path).unwrap();
}

fn open(dir: &Path) -> (VarStore, Encoder) {
    Encoder::from_pretrained(dir, Device::Cpu, None).unwrap()
}

fn config(dir: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join("config.json")).unwrap()).unwrap()
}

/// A directory with these fields and tensors.
fn checkpoint(dir: PathBuf, config: &Value, tensors: &Tensors) -> PathBuf {
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    write(tensors, &dir.join("model.safetensors"));
    dir
}

/// The checkpoints of the script, made once for all that is to be seen in them.
#[test]
fn encoders_are_those_of_transformers() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    common::run_python("encoders.py", &["make", dir.path().to_str().unwrap()]);
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(dir.path()).unwrap().map(|case| case.unwrap().path()).collect();
    cases.sort();
    assert_eq!(cases.len(), 19);
    for case in &cases {
        let reference = read(&case.join("reference.st"));
        outputs_and_gradients(case, &reference);
        dropout_stands_where_it_should(case, &reference, dir.path());
        the_base_model_alone(case, &reference);
    }
    for case in cases.iter().filter(|case| case.ends_with("00_bert_base")) {
        prefixes_and_former_names(case, dir.path());
    }
    for case in cases.iter().filter(|case| case.to_str().unwrap().contains("base")) {
        new_heads(case, dir.path());
    }
    tied_decoders(&cases, dir.path());
    refusals(&cases, dir.path());
}

fn outputs_and_gradients(case: &Path, reference: &Tensors) {
    for side in ["right", "left", "none"] {
        let (vs, model) = open(case);
        let given = |name: &str| reference.get(&format!("{side}.{name}"));
        let (ids, mask, types) = (given("input_ids").unwrap(), given("mask"), given("types"));
        let shown = mask.map(|mask| mask.unsqueeze(-1).to_kind(Kind::Float));
        let shown = |x: Tensor| shown.as_ref().map_or(x.shallow_clone(), |shown| x * shown);
        let mut outputs = vec![];
        if model.config().head() == Head::None {
            let hidden = model
                .hidden_states(Inputs::new(ids).attention_mask(mask).token_type_ids(types))
                .unwrap();
            if given("pooled").is_some() {
                outputs.push(("pooled", model.pooled(&hidden).unwrap()));
            }
            outputs.push(("hidden", shown(hidden)));
        } else {
            let logits =
                model.logits(Inputs::new(ids).attention_mask(mask).token_type_ids(types)).unwrap();
            outputs.push(("logits", if logits.dim() == 3 { shown(logits) } else { logits }));
        }
        let mut loss = Tensor::from(0f32);
        for (name, output) in outputs {
            let expected = given(name).unwrap();
            let off = difference(&output, expected);
            assert!(off <= 1e-4, "{case:?} {side}: {name} is {off} off");
            assert!(expected.abs().max().double_value(&[]) > 0.05);
            loss += output.square().mean(Kind::Float);
        }
        loss.backward();
        let gradients = reference.keys().filter(|key| key.starts_with(&format!("{side}.grad.")));
        let mut seen = 0;
        for (name, variable) in vs.variables() {
            // PyTorch names a tied tensor by the module that was made first: XLM-RoBERTa's head.
            let tied = name.ends_with("word_embeddings.weight").then_some("lm_head.decoder.weight");
            let named = |name: &str| given(&format!("grad.{name}"));
            let Some(expected) = named(&name).or_else(|| tied.and_then(named)) else {
                // The decoder's other bias, where it is not tied.
                assert!(name == "cls.predictions.bias" && !variable.grad().defined(), "{name}");
                continue;
            };
            let scale = expected.abs().max().double_value(&[]).max(1e-2);
            let off = difference(&variable.grad(), expected) / scale;
            assert!(off <= 1e-4, "{case:?} {side}: the gradient of {name} is {off} off");
            seen += 1;
        }
        assert_eq!(gradients.count(), seen, "{case:?}: a variable for each gradient");
        // Nothing to look at is no reason for NaN.
        let nothing = Tensor::zeros_like(ids);
        let hidden = model
            .hidden_states(Inputs::new(ids).attention_mask(&nothing).token_type_ids(types))
            .unwrap();
        assert_eq!(hidden.isfinite().all().int64_value(&[]), 1);
    }
}

/// The reference drops everything in one kind of place and nothing in the others, so that nothing is random.
fn dropout_stands_where_it_should(case: &Path, reference: &Tensors, root: &Path) {
    let dropped = reference.keys().filter_map(|key| key.strip_prefix("dropped."));
    let keys: Vec<&str> = dropped.collect();
    for key in &keys {
        let mut changed = config(case);
        for other in &keys {
            changed[*other] = json!(f64::from(other == key));
        }
        let dir =
            checkpoint(root.join("dropped"), &changed, &read(&case.join("model.safetensors")));
        let (_, model) = open(&dir);
        let given = |name: &str| reference.get(&format!("none.{name}"));
        let ids = given("input_ids").unwrap();
        let logits =
            model.logits(Inputs::new(ids).token_type_ids(given("types")).train(true)).unwrap();
        let off = difference(&logits, &reference[&format!("dropped.{key}")]);
        assert!(off <= 1e-4, "{case:?}: with {key} the logits are {off} off");
        let without = model.logits(Inputs::new(ids).token_type_ids(given("types"))).unwrap();
        assert!(difference(&without, given("logits").unwrap()) <= 1e-4);
        // A setting of another head drops nothing.
        let other =
            key == &"seq_classif_dropout" && model.config().head() == Head::TokenClassification;
        assert!(difference(&without, &logits) > 1e-3 || other, "{case:?}: {key} drops something");
    }
}

/// From whatever checkpoint, the base model's variables have no prefix, and the head is left out.
fn the_base_model_alone(case: &Path, reference: &Tensors) {
    let (vs, model) =
        Encoder::from_pretrained_with(case, &Load::on(Device::Cpu).head(Head::None)).unwrap();
    assert!(vs.variables().contains_key("embeddings.LayerNorm.weight"));
    let given = |name: &str| reference.get(&format!("none.{name}"));
    let ids = given("input_ids").unwrap();
    let hidden = model.hidden_states(Inputs::new(ids).token_type_ids(given("types"))).unwrap();
    let off = difference(&hidden, &reference["base_of_it"]);
    assert!(off <= 1e-4, "{case:?}: the base model is {off} off");
    assert_eq!(model.logits(ids).unwrap_err().kind(), ErrorKind::InvalidState);
    let in_file = read(&case.join("model.safetensors"));
    let has_pooler = in_file.keys().any(|name| name.ends_with("pooler.dense.weight"));
    match model.pooled(&hidden) {
        Ok(pooled) => assert!(has_pooler && pooled.size() == [3, 24]),
        Err(error) => assert!(!has_pooler && error.kind() == ErrorKind::InvalidState),
    }
}

/// The same model under the names of older files: below a prefix, with gamma and beta, with buffers.
fn prefixes_and_former_names(case: &Path, root: &Path) {
    let tensors = read(&case.join("model.safetensors"));
    let former = |name: &str| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        format!("bert.{}", name.replace("LayerNorm.bias", "LayerNorm.beta"))
    };
    let mut renamed: Tensors =
        tensors.iter().map(|(name, tensor)| (former(name), tensor.shallow_clone())).collect();
    let buffer = Tensor::arange(20, (Kind::Int64, Device::Cpu)).view([1, 20]);
    renamed.insert("bert.embeddings.position_ids".into(), buffer);
    renamed.insert("cls.seq_relationship.bias".into(), Tensor::from_slice(&[0f32; 2]));
    let dir = checkpoint(root.join("former"), &config(case), &renamed);
    let (new, old) = (open(case).0.variables(), open(&dir).0.variables());
    assert_eq!(new.len(), old.len());
    for (name, tensor) in new {
        assert_eq!(difference(&tensor, &old[&name]), 0., "{name}");
    }
}

/// Each classifier on each base model: nothing but the head is new, and transformers loads what is saved.
fn new_heads(case: &Path, root: &Path) {
    let in_file = read(&case.join("model.safetensors"));
    for (name, head) in HEADS {
        let missing = Encoder::from_pretrained_with(case, &Load::on(Device::Cpu).head(head));
        if head == Head::None {
            assert!(missing.is_ok());
            continue;
        }
        // Never silently.
        assert_eq!(missing.unwrap_err().kind(), ErrorKind::MissingKeys);
        let labels = ["bad", "good", "neither"];
        let made = |labels: &[&str], kind| {
            let load = Load::on(Device::Cpu).kind(kind).head(head).labels(labels.to_vec());
            Encoder::from_pretrained_with(case, &load)
        };
        if !head.has_labels() {
            assert_eq!(made(&labels, None).unwrap_err().kind(), ErrorKind::InvalidArgument);
            continue;
        }
        for bad in [&[][..], &["a", "a"]] {
            assert_eq!(made(bad, None).unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
        let (vs, model) = made(&labels, None).unwrap();
        assert_eq!(model.config().labels(), labels);
        let mut kept = 0;
        for (name, tensor) in vs.variables() {
            let Some((_, inside)) = name.split_once('.').filter(|_| in_file.len() > 3) else {
                continue;
            };
            if let Some(original) = in_file.get(inside) {
                assert_eq!(difference(&tensor, original), 0., "{name}");
                kept += 1;
            }
        }
        let bert_pooler = case.ends_with("00_bert_base") && name == "sequence";
        let poolers = if bert_pooler { 0 } else { 2 };
        let poolers = if in_file.contains_key("pooler.dense.weight") { poolers } else { 0 };
        assert_eq!(kept, in_file.len() - poolers, "{case:?} {name}");
        let half = made(&labels, Some(Kind::BFloat16)).unwrap().0;
        assert!(half.variables().values().all(|tensor| tensor.kind() == Kind::BFloat16));

        let saved = root.join("saved");
        pretrained::save(&vs, &saved, &model.config().to_json()).unwrap();
        let ids = Tensor::arange(10, (Kind::Int64, Device::Cpu)).view([2, 5]) + 5;
        let mask = Tensor::from_slice(&[1i64, 1, 1, 1, 1, 1, 1, 0, 0, 0]).view([2, 5]);
        write(
            &HashMap::from([
                ("input_ids".into(), ids.shallow_clone()),
                ("attention_mask".into(), mask.shallow_clone()),
            ]),
            &saved.join("inputs.st"),
        );
        let said = common::run_python("encoders.py", &["load", saved.to_str().unwrap()]);
        let said: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(said["left"], json!({}), "{case:?} {name}");
        assert_eq!(said["id2label"], json!({"0": "bad", "1": "good", "2": "neither"}));
        assert_eq!(said["label2id"], json!({"bad": 0, "good": 1, "neither": 2}));
        let expected = &read(&saved.join("outputs.st"))["logits"];
        let logits = open(&saved).1.logits(Inputs::new(&ids).attention_mask(&mask)).unwrap();
        let shown = mask.unsqueeze(-1).to_kind(Kind::Float);
        let shown = |x: &Tensor| if x.dim() == 3 { x * &shown } else { x.shallow_clone() };
        assert!(difference(&shown(&logits), &shown(expected)) <= 1e-5, "{case:?} {name}");
    }
}

/// A file may hold a tied decoder too, by either name of its bias; one that is another is used, as transformers does.
fn tied_decoders(cases: &[PathBuf], root: &Path) {
    let case = cases.iter().find(|case| case.ends_with("05_roberta_masked_lm")).unwrap();
    let tensors = read(&case.join("model.safetensors"));
    let names = open(case).0.variables();
    let with = |changes: &[(&str, &str)], remove: &str, scale: f64| {
        let mut changed: Tensors =
            tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        for (copy, original) in changes {
            changed.insert((*copy).into(), &tensors[*original] * scale);
        }
        changed.remove(remove);
        let dir = checkpoint(root.join("tied"), &config(case), &changed);
        Encoder::from_pretrained(dir, Device::Cpu, None)
    };
    let words = "roberta.embeddings.word_embeddings.weight";
    let both = [("lm_head.decoder.weight", words), ("lm_head.decoder.bias", "lm_head.bias")];
    for (changes, remove) in [(&both[..], ""), (&both[1..], "lm_head.bias")] {
        let vs = with(changes, remove, 1.).unwrap().0.variables();
        assert_eq!(vs.len(), names.len());
        assert!(vs.iter().all(|(name, tensor)| difference(tensor, &names[name]) == 0.));
    }
    for (copy, original) in both {
        let vs = with(&[(copy, original)], "", 2.).unwrap().0.variables();
        assert_eq!(difference(&vs[copy], &(&names[original] * 2.)), 0.);
    }
}

/// Checkpoints and inputs that are not what they should be.
fn refusals(cases: &[PathBuf], root: &Path) {
    let find = |name: &str| cases.iter().find(|case| case.ends_with(name)).unwrap();
    let (bert, roberta) = (find("02_bert_sequence"), find("06_roberta_sequence"));
    let refused = |case: &Path, key: &str, value: &Value, extra: Option<(&str, Tensor)>| -> Error {
        let mut changed = config(case);
        changed[key] = value.clone();
        let mut tensors = read(&case.join("model.safetensors"));
        tensors.extend(extra.map(|(name, tensor)| (name.to_owned(), tensor)));
        let dir = checkpoint(root.join("refused"), &changed, &tensors);
        Encoder::from_pretrained(dir, Device::Cpu, None).map(drop).unwrap_err()
    };
    for (case, key, value, kind) in [
        (bert, "model_type", json!("electra"), ErrorKind::Unsupported),
        (bert, "architectures", json!(["BertForPreTraining"]), ErrorKind::Unsupported),
        (bert, "architectures", json!(["RobertaModel"]), ErrorKind::Unsupported),
        (bert, "architectures", json!(["BertForMaskedLM"]), ErrorKind::MissingKeys),
        (bert, "position_embedding_type", json!("relative_key"), ErrorKind::Unsupported),
        (bert, "is_decoder", json!(true), ErrorKind::Unsupported),
        (bert, "add_cross_attention", json!(true), ErrorKind::Unsupported),
        (bert, "quantization_config", json!({"bits": 4}), ErrorKind::Unsupported),
        (bert, "pruned_heads", json!({"0": [1]}), ErrorKind::Unsupported),
        (bert, "hidden_act", json!("mish"), ErrorKind::Unsupported),
        (bert, "hidden_act", json!(1), ErrorKind::InvalidConfig),
        (bert, "hidden_size", json!(null), ErrorKind::InvalidConfig),
        (bert, "num_attention_heads", json!(5), ErrorKind::InvalidConfig),
        (bert, "num_attention_heads", json!(0), ErrorKind::InvalidConfig),
        (bert, "pad_token_id", json!(50), ErrorKind::InvalidConfig),
        (bert, "id2label", json!({"0": "a", "2": "b"}), ErrorKind::InvalidConfig),
        (bert, "id2label", json!({"0": "a", "1": "b"}), ErrorKind::ShapeMismatch),
        (bert, "num_hidden_layers", json!(3), ErrorKind::MissingKeys),
        (bert, "num_hidden_layers", json!(1), ErrorKind::UnexpectedKeys),
        (bert, "intermediate_size", json!(41), ErrorKind::ShapeMismatch),
        (roberta, "pad_token_id", json!(null), ErrorKind::InvalidConfig),
        (roberta, "max_position_embeddings", json!(2), ErrorKind::InvalidConfig),
    ] {
        let error = refused(case, key, &value, None);
        assert_eq!(error.kind(), kind, "{key} {value}: {error}");
    }
    for (name, kind) in [
        ("bert.encoder.layer.0.surplus", ErrorKind::UnexpectedKeys),
        ("surplus", ErrorKind::UnexpectedKeys),
        // Beside the one below the prefix.
        ("embeddings.LayerNorm.weight", ErrorKind::UnexpectedKeys),
    ] {
        let tensor = Tensor::from_slice(&[1f32; 24]);
        let error = refused(bert, "use_cache", &json!(true), Some((name, tensor)));
        assert_eq!(error.kind(), kind, "{name}: {error}");
    }

    let (_, model) = open(bert);
    let ids = Tensor::ones([2, 3], (Kind::Int64, Device::Cpu));
    let short = ids.narrow(1, 0, 2);
    let kind = |ids: &Tensor, mask: Option<&Tensor>, types: Option<&Tensor>| {
        model
            .logits(Inputs::new(ids).attention_mask(mask).token_type_ids(types))
            .unwrap_err()
            .kind()
    };
    assert_eq!(kind(&ids.get(0), None, None), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&ids, Some(&short), None), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&ids, None, Some(&short)), ErrorKind::ShapeMismatch);
    let long = Tensor::ones([1, 21], (Kind::Int64, Device::Cpu));
    assert_eq!(kind(&long, None, None), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&(&ids + 50), None, None), ErrorKind::Torch);
    assert_eq!(kind(&ids, None, Some(&(&ids + 2))), ErrorKind::Torch);
    let (_, model) = open(roberta);
    assert_eq!(model.config().max_length(), 18);
    assert!(model.logits(&(long.narrow(1, 0, 18) + 9)).is_ok());
    let (_, model) = open(find("14_distilbert_sequence"));
    let error = model.logits(Inputs::new(&ids).token_type_ids(&ids)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn an_encoder_can_be_made_without_a_checkpoint() {
    let fields = json!({
        "model_type": "bert", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_labels": 3, "problem_type": "regression", "custom": "kept",
        "architectures": ["BertForSequenceClassification"],
    });
    let config = EncoderConfig::from_value(&fields).unwrap();
    assert_eq!(config.labels(), ["LABEL_0", "LABEL_1", "LABEL_2"]);
    let vs = VarStore::new(Device::Cpu);
    let model = Encoder::new(&vs.root(), &config).unwrap();
    assert_eq!(vs.len(), 5 + 2 * 16 + 4);
    let ids = Tensor::arange(6, (Kind::Int64, Device::Cpu)).view([2, 3]);
    let logits = model.logits(&ids).unwrap();
    assert_eq!(logits.size(), [2, 3]);
    // A second model on the same variables is the same model.
    let again = Encoder::new(&vs.root(), &config).unwrap();
    assert_eq!(vs.len(), 5 + 2 * 16 + 4);
    assert_eq!(difference(&again.logits(&ids).unwrap(), &logits), 0.);
    // A configuration is read back as it was written.
    let written: Value = serde_json::from_str(&config.to_json()).unwrap();
    assert_eq!(written["problem_type"], "regression");
    assert_eq!(written["custom"], "kept");
    assert_eq!(EncoderConfig::from_value(&written).unwrap().to_json(), config.to_json());
    let other = config.with_labels(["one"]).unwrap().with_head(Head::TokenClassification).unwrap();
    let written: Value = serde_json::from_str(&other.to_json()).unwrap();
    assert_eq!(written["architectures"], json!(["BertForTokenClassification"]));
    assert_eq!(written.get("problem_type"), None);
}
