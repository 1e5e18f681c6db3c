//! Adapters for another class of the model than their base: with a head of their own, or with none.

use std::collections::HashMap;
use std::path::Path;

use crate::common;
use ln_tuning::models::{AnyModel, Inputs, Load};
use ln_tuning::pretrained::{self, Head, ModelFiles};
use ln_tuning::{merge, ErrorKind, LnTuningConfig, LnTuningModel, SavedAdapter, TaskType};
use tch::{nn, no_grad, Device, Tensor};

type Reference = HashMap<String, Tensor>;

fn check(model: &AnyModel, reference: &Reference, case: &Path) {
    let given = |name: &str| reference.get(name);
    let inputs = Inputs::default()
        .input_ids(given("input_ids"))
        .attention_mask(given("attention_mask"))
        .pixel_values(given("pixel_values"));
    let found = no_grad(|| model.logits(inputs)).unwrap();
    let difference = (found - &reference["output"]).abs().max().double_value(&[]);
    assert!(difference < 2e-5, "{case:?} differs by {difference}");
}

#[test]
fn adapters_with_a_head_of_their_own_are_attached_and_merged_into_a_base_without_it_as_in_peft() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    common::run_python("heads.py", &["make", root]);
    let (mut cases, mut computed, mut headless) = (0, 0, 0);
    for case in std::fs::read_dir(dir.path()).unwrap() {
        let case = case.unwrap().path();
        let reference: Reference =
            Tensor::read_safetensors(case.join("reference.st")).unwrap().into_iter().collect();
        let (base, adapter) = (case.join("base"), case.join("adapter"));
        let report = merge(&base, &adapter, case.join("merged"), |_, _| ()).unwrap();
        assert!(!report.merged.is_empty());

        // Without model code.
        let saved = SavedAdapter::open(&adapter).unwrap();
        let vs = saved.var_store(ModelFiles::open(&base).unwrap()).unwrap();
        let tuned = LnTuningModel::from_pretrained(&vs, &adapter).unwrap();
        let diff = tuned.diff("default", None).unwrap();
        assert_eq!(diff.tensors.len(), saved.tensors.len(), "{case:?}");
        assert!(diff.tensors.iter().all(|tensor| tensor.max_abs > 0.), "{case:?}");
        drop((tuned, vs));

        // With a model, where there is one with this head.
        let head = saved.new_head(ModelFiles::open(&base).unwrap()).unwrap();
        let (labelled, other) = head.into_iter().partition::<Vec<_>, _>(|(_, l)| !l.is_empty());
        // No model here answers questions.
        for (head, _) in other.into_iter().filter(|(h, _)| *h != Head::QuestionAnswering) {
            let load = Load::on(Device::Cpu).head(head);
            let (vs, model) =
                AnyModel::from_files(ModelFiles::open(&base).unwrap(), &load).unwrap();
            let _tuned = LnTuningModel::from_pretrained(&vs, &adapter).unwrap();
            let ids = &reference["input_ids"];
            let found =
                if head == Head::None { model.hidden_states(ids) } else { model.logits(ids) };
            let difference = (found.unwrap() - &reference["output"]).abs().max();
            assert!(difference.double_value(&[]) < 2e-5, "{case:?}");
            headless += 1;
        }
        for (head, labels) in labelled {
            let merged = ModelFiles::open(case.join("merged")).unwrap();
            assert_eq!(merged.head(), head, "{case:?}");
            let load = Load::on(Device::Cpu).head(head).labels(labels);
            match AnyModel::from_files(ModelFiles::open(&base).unwrap(), &load) {
                Ok((vs, model)) => {
                    let _tuned = LnTuningModel::from_pretrained(&vs, &adapter).unwrap();
                    check(&model, &reference, &case);
                    let load = Load::on(Device::Cpu);
                    check(&AnyModel::from_files(merged, &load).unwrap().1, &reference, &case);
                    computed += 1;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{case:?}: {error}"),
            }
        }
        cases += 1;
    }
    assert_eq!((cases, computed, headless), (22, 9, 3));
    let checked = common::run_python("heads.py", &["check", root]);
    assert_eq!(checked.lines().filter(|line| line.ends_with(" ok")).count(), cases, "{checked}");
}

/// PEFT would make what is missing at random.
#[test]
fn a_head_of_which_a_part_is_nowhere_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let with = |names: &[&str]| {
        let vs = nn::VarStore::new(Device::Cpu);
        for name in names {
            let (module, last) = name.rsplit_once('.').unwrap();
            let path = module.split('.').fold(vs.root(), |path, segment| path / segment);
            let _ = path.var(last, &[4], nn::Init::Const(1.));
        }
        vs
    };
    let norm = "bert.encoder.layer.0.output.LayerNorm.weight";
    let base = with(&[norm, "cls.predictions.bias"]);
    let config = r#"{"model_type": "bert", "architectures": ["BertForMaskedLM"]}"#;
    pretrained::save(&base, dir.path().join("base"), config).unwrap();
    let config = LnTuningConfig::default().target_modules(["LayerNorm"]);
    let saves = |names: &[&str], config: &LnTuningConfig| {
        let tuned = LnTuningModel::new(&with(names), config.clone()).unwrap();
        tuned.save_pretrained(dir.path().join("adapter")).unwrap();
        let (base, out) = (dir.path().join("base"), dir.path().join("out"));
        merge(base, dir.path().join("adapter"), out, |_, _| ())
    };
    let classifier = config.clone().task_type(TaskType::SeqCls);
    let error = saves(&[norm, "classifier.weight"], &classifier).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingKeys);
    assert!(error.to_string().contains("'bert.pooler'"), "{error}");
    assert!(!dir.path().join("out").exists());
    let whole = classifier.modules_to_save(["pooler.dense"]);
    let names = [norm, "classifier.weight", "bert.pooler.dense.weight"];
    let report = saves(&names, &whole).unwrap();
    assert_eq!(
        report.merged,
        [
            "bert.encoder.layer.0.output.LayerNorm.weight",
            "bert.pooler.dense.weight",
            "classifier.weight"
        ]
    );
    let merged = ModelFiles::open(dir.path().join("out")).unwrap();
    assert_eq!(merged.config()["architectures"][0], "BertForSequenceClassification");
    assert_eq!(merged.config()["id2label"]["3"], "LABEL_3");
    assert_eq!(merged.variables().len(), 3, "the other head is left out");
}
