//! Decoders without a language model's head, and one whose tied head is another in the file.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use crate::common;
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, GenerateOptions, Head, Inputs, Load, Model, ModelConfig};
use ln_tuning::{pretrained, ErrorKind};
use tch::{nn::VarStore, no_grad, Device, Kind, Tensor};

type Tensors = HashMap<String, Tensor>;

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

fn read(path: &Path) -> Tensors {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

fn names(vs: &VarStore) -> BTreeSet<String> {
    vs.variables().into_keys().collect()
}

fn load(dir: &Path, load: &Load) -> (VarStore, Decoder) {
    Decoder::from_pretrained_with(dir, load).unwrap()
}

fn shown(output: Tensor, mask: Option<&Tensor>) -> Tensor {
    match mask {
        Some(mask) if output.dim() == 3 => output * mask.unsqueeze(-1).to_kind(Kind::Float),
        _ => output,
    }
}

/// The inputs of one side of padding.
fn inputs<'r>(reference: &'r Tensors, side: &str) -> (&'r Tensor, Option<&'r Tensor>) {
    (&reference[&format!("{side}.ids")], reference.get(&format!("{side}.mask")))
}

fn outputs_and_gradients(case: &Path, reference: &Tensors) {
    for side in ["right", "left", "none"] {
        let (vs, model) = Decoder::from_pretrained(case, Device::Cpu, None).unwrap();
        let prefix = format!("{side}.grad.");
        let live = reference.keys().filter_map(|key| key.strip_prefix(&prefix));
        assert_eq!(names(&vs), live.map(str::to_owned).collect(), "{case:?}");
        let (ids, mask) = inputs(reference, side);
        let given = Inputs::new(ids).attention_mask(mask);
        let output = match model.config().head() {
            Head::None => model.hidden_states(given),
            _ => model.logits(given),
        };
        let output = shown(output.unwrap(), mask);
        let expected = &reference[&format!("{side}.output")];
        assert!(expected.abs().max().double_value(&[]) > 0.1);
        let off = difference(&output, expected);
        assert!(off <= 1e-4, "{case:?} {side}: the output is {off} off");
        output.square().mean(Kind::Float).backward();
        for (name, variable) in vs.variables() {
            let expected = &reference[&format!("{prefix}{name}")];
            let scale = expected.abs().max().double_value(&[]).max(1.);
            let off = difference(&variable.grad(), expected) / scale;
            assert!(off <= 1e-4, "{case:?} {side}: the gradient of {name} is {off} off");
        }
    }
}

/// A base model's files with the configuration of a language model, tied: as either.
fn either_head(case: &Path, reference: &Tensors) {
    let (ids, mask) = inputs(reference, "none");
    let (vs, model) = load(case, &Load::on(Device::Cpu));
    assert_eq!(model.config().head(), Head::LanguageModel);
    assert!(names(&vs).iter().all(|name| name.starts_with("model.")));
    let hidden = shown(model.hidden_states(ids).unwrap(), mask);
    let (vs, model) = load(case, &Load::on(Device::Cpu).head(Head::None));
    assert!(names(&vs).contains("layers.0.input_layernorm.weight"));
    for hidden in [hidden, shown(model.hidden_states(ids).unwrap(), mask)] {
        let off = difference(&hidden, &reference["base"]);
        assert!(off <= 1e-4, "{case:?}: hidden states are {off} off");
    }
}

/// A classifier for labels of your own, which transformers reads.
fn own_labels(case: &Path, class: &str, base: &str, reference: &Tensors, out: &Path) {
    tch::manual_seed(3);
    let labels = ["good", "bad", "odd", "even"];
    let (vs, model) = load(case, &Load::on(Device::Cpu).labels(labels));
    assert_eq!(model.config().head(), Head::SequenceClassification);
    assert_eq!(model.config().labels(), labels);
    let variables = vs.variables();
    assert!(variables.keys().all(|name| name.starts_with(base) || name == "score.weight"));
    let (score, size) = (&variables["score.weight"], model.config().output_size());
    assert_eq!(score.size(), [4, size]);
    assert!(score.std(true).double_value(&[]) > 0.005);
    let (ids, mask) = inputs(reference, "right");
    let ones = Tensor::ones_like(ids);
    let mask = mask.unwrap_or(&ones);
    let logits = no_grad(|| model.logits(Inputs::new(ids).attention_mask(mask))).unwrap();
    pretrained::save(&vs, out, &model.config().to_json()).unwrap();
    let given = [("ids", ids), ("mask", mask)];
    Tensor::write_safetensors(&given, out.join("inputs.st")).unwrap();
    let printed = common::run_python("decoder_heads.py", &["logits", out.to_str().unwrap()]);
    let (theirs, names): (String, Vec<String>) = serde_json::from_str(&printed).unwrap();
    assert_eq!((theirs.as_str(), &names[..]), (class, &labels.map(String::from)[..]));
    let off = difference(&logits, &read(&out.join("outputs.st"))["logits"]);
    assert!(off <= 1e-4, "{case:?}: logits of the new labels are {off} off");
    // The saved directory is a classifier's.
    let (_, again) = load(out, &Load::on(Device::Cpu));
    let again = no_grad(|| again.logits(Inputs::new(ids).attention_mask(mask))).unwrap();
    assert_eq!(again, logits);
}

fn refusals(base: &Path, classifier: &Path) {
    let ids = Tensor::from_slice2(&[[5_i64, 6, 7], [8, 9, 10]]);
    let cross_entropy = LinearCrossEntropy::default();
    let options = GenerateOptions::default().max_new_tokens(2);
    let (_, model) = load(base, &Load::on(Device::Cpu));
    let (_, scores) = load(classifier, &Load::on(Device::Cpu));
    for error in [
        model.logits(&ids).unwrap_err(),
        model.loss(&ids, &ids, &cross_entropy).unwrap_err(),
        model.generate(&ids, &options).unwrap_err(),
        scores.loss(&ids, &ids, &cross_entropy).unwrap_err(),
        scores.generate(&ids, &options).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidState, "{error}");
        assert!(error.to_string().contains("Head::LanguageModel"), "{error}");
    }
    let error = scores.logits(Inputs::new(&ids).documents(&ids)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let refused =
        |dir: &Path, load: &Load| Decoder::from_pretrained_with(dir, load).map(drop).unwrap_err();
    let on = || Load::on(Device::Cpu);
    // Neither a head nor a classifier is in the files.
    for head in [Head::LanguageModel, Head::SequenceClassification] {
        let error = refused(base, &on().head(head));
        assert_eq!(error.kind(), ErrorKind::MissingKeys, "{error}");
        let name = if head == Head::LanguageModel { "lm_head.weight" } else { "score.weight" };
        assert!(error.to_string().contains(name), "{error}");
    }
    assert_eq!(refused(base, &on().head(Head::MaskedLm)).kind(), ErrorKind::Unsupported);
    let load = on().head(Head::LanguageModel).labels(["a", "b"]);
    assert_eq!(refused(base, &load).kind(), ErrorKind::InvalidArgument);
}

#[test]
fn decoders_without_a_language_models_head_are_those_of_transformers() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    common::run_python("decoder_heads.py", &["make", dir.path().to_str().unwrap()]);
    let mut cases = 0;
    for case in std::fs::read_dir(dir.path()).unwrap() {
        let case = case.unwrap().path();
        outputs_and_gradients(&case, &read(&case.join("reference.st")));
        cases += 1;
    }
    assert_eq!(cases, 8);
    let case = |name: &str| {
        let case = dir.path().join(name);
        let reference = read(&case.join("reference.st"));
        (case, reference)
    };
    let (qwen3, reference) = case("qwen3_embedding");
    either_head(&qwen3, &reference);
    for (name, class, base) in [
        ("mistral_base", "MistralForSequenceClassification", "model."),
        ("qwen3_embedding", "Qwen3ForSequenceClassification", "model."),
        ("llama_sequence", "LlamaForSequenceClassification", "model."),
        ("gpt2_sequence", "GPT2ForSequenceClassification", "transformer."),
    ] {
        let (case, reference) = case(name);
        own_labels(&case, class, base, &reference, &dir.path().join(format!("{name}_labels")));
    }
    refusals(&case("mistral_base").0, &case("llama_sequence").0);
    // Rows of several lengths cannot be told apart, and the last place counts.
    let (case, _) = case("llama_without_padding");
    let (_, model) = load(&case, &Load::on(Device::Cpu));
    assert_eq!(model.config().pad_token_id(), None);
    assert_eq!(model.config().labels(), ["ham", "spam", "neither"]);
}
