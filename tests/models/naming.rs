//! Names of a directory's tensors: those that the live Python model has, for models, adapters, merging and `plan`
//! alike.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::common;
use ln_tuning::pretrained::{Head, ModelFiles};
use ln_tuning::{merge, AdapterOptions, ErrorKind, LnTuningConfig, LnTuningModel, Norms};
use serde::Deserialize;
use tch::{Device, Tensor};

#[derive(Deserialize)]
struct Described {
    /// The head of the class in `architectures`.
    said: String,
    rows: Vec<Row>,
}

/// The live model of one class.
#[derive(Deserialize)]
struct Row {
    head: String,
    /// The modules that PEFT tunes.
    modules: BTreeSet<String>,
}

const HEADS: [Head; 8] = [
    Head::None,
    Head::LanguageModel,
    Head::MaskedLm,
    Head::SequenceClassification,
    Head::TokenClassification,
    Head::QuestionAnswering,
    Head::ImageClassification,
    Head::Other,
];

fn head(name: &str) -> Head {
    *HEADS.iter().find(|head| format!("{head:?}") == name).unwrap()
}

fn open(base: &Path, head: Head) -> ModelFiles {
    ModelFiles::open(base).unwrap().with_head(head).unwrap()
}

fn read(path: &Path) -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

fn names(files: &ModelFiles) -> BTreeSet<String> {
    files.variables().into_iter().map(|variable| variable.name).collect()
}

fn assert_same(found: &BTreeMap<String, Tensor>, expected: &BTreeMap<String, Tensor>, case: &str) {
    let names = |map: &BTreeMap<String, Tensor>| map.keys().cloned().collect::<BTreeSet<_>>();
    let (ours, theirs) = (names(found), names(expected));
    let missing: Vec<_> = theirs.difference(&ours).collect();
    let surplus: Vec<_> = ours.difference(&theirs).collect();
    assert!(ours == theirs, "{case}: missing {missing:?}, surplus {surplus:?}");
    for (name, tensor) in expected {
        assert!(found[name].equal(tensor), "{case}: {name}");
    }
}

/// Everything that looks at a directory, beside one class of transformers.
fn one_class(case: &Path, base: &Path, said: Head, row: &Row) {
    let own = head(&row.head);
    let label = format!("{} {own:?}", case.file_name().unwrap().to_string_lossy());
    let folder = case.join(&row.head);
    let files = if own == said { ModelFiles::open(base).unwrap() } else { open(base, own) };
    assert_eq!(files.head(), own, "{label}");
    let live = read(&folder.join("live.safetensors"));
    let found = names(&files).into_iter().map(|name| (name.clone(), files.tensor(&name).unwrap()));
    assert_same(&found.collect(), &live, &label);

    // An adapter of PEFT, on the variables and into the files.
    let vs = files.var_store(Device::Cpu, None, |_| true).unwrap();
    let variables = || vs.variables().into_iter().collect();
    assert_same(&variables(), &live, &label);
    let merged = read(&folder.join("merged.safetensors"));
    let tuned = LnTuningModel::from_pretrained(&vs, folder.join("adapter")).unwrap();
    tuned.merge_and_unload().unwrap();
    assert_same(&variables(), &merged, &label);
    if own == said {
        let out = case.join("out");
        merge(base, folder.join("adapter"), &out, |_, _| ()).unwrap();
        let out = ModelFiles::open(out).unwrap();
        let found = names(&out).into_iter().map(|name| (name.clone(), out.tensor(&name).unwrap()));
        assert_same(&found.collect(), &merged, &label);
        assert_eq!(out.left_out(), files.left_out(), "{label}");
    }

    // Without `target_modules`, what PEFT takes on the same directory; all norms, if its table lacks the model type.
    let vs = files.var_store(Device::Cpu, None, |_| true).unwrap();
    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
    // But for what the model does not use, which our default leaves out and names.
    let unused = tuned.model_status().unused.remove("default").unwrap_or_default();
    let mut found = modules(&tuned);
    found.extend(unused.into_iter().map(|module| module.path));
    assert_eq!(row.modules, found, "{label}");
}

fn modules(tuned: &LnTuningModel) -> BTreeSet<String> {
    tuned.layer_status().into_iter().map(|layer| layer.name).collect()
}

/// Options win over the model type of the directory.
fn options_win(base: &Path) {
    let files = ModelFiles::open(base).unwrap();
    let count = |options: AdapterOptions| {
        let vs = files.var_store(Device::Cpu, None, |_| true).unwrap();
        let config = LnTuningConfig::default();
        let tuned = LnTuningModel::with_options(&vs, config, "default", &options).unwrap();
        modules(&tuned).len()
    };
    let options = AdapterOptions::default;
    // Two layers with four norms each, one of which PEFT takes, and the last norm.
    assert_eq!(count(options()), 2);
    assert_eq!(count(options().norms(Norms::All)), 9);
    assert_eq!(count(options().model_type("llama")), 5);
    assert_eq!(count(options().model_type("mine")), 9);
}

#[test]
fn names_are_those_of_the_live_model_whatever_the_class() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    common::run_python("naming.py", &["make", root]);
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    let mut classes = 0;
    for case in &cases {
        let text = std::fs::read_to_string(case.join("described.json")).unwrap();
        let described: Described = serde_json::from_str(&text).unwrap();
        let base = case.join("base");
        let said = head(&described.said);
        assert_eq!(ModelFiles::open(&base).unwrap().head(), said, "{case:?}");
        for row in &described.rows {
            one_class(case, &base, said, row);
            // From one head to another and back.
            let own = open(&base, head(&row.head));
            if said != Head::Other {
                let back = open(&base, head(&row.head)).with_head(said).unwrap();
                let back = back.with_head(head(&row.head)).unwrap();
                assert_eq!(names(&own), names(&back), "{case:?}");
            }
            classes += 1;
        }
    }
    assert!(classes > 150, "{classes} classes");
    let checked = common::run_python("naming.py", &["check", root]);
    assert_eq!(checked.trim().parse::<usize>().unwrap(), cases.len());

    options_win(&dir.path().join("qwen3_lm/base"));

    // Nothing is lost silently.
    let files = |case: &str| ModelFiles::open(dir.path().join(case).join("base")).unwrap();
    assert_eq!(files("tied_two_heads").left_out(), ["lm_head.weight"]);
    assert_eq!(files("tied_own_head").left_out(), [""; 0]);
    let left = files("bert_pre_training").with_head(Head::TokenClassification).unwrap();
    assert!(left.left_out().contains(&"cls.seq_relationship.weight"));
    let error = files("llama_lm").with_head(Head::MaskedLm).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("'llama' has no head MaskedLm, expected one of [None, "));
}

#[derive(Deserialize)]
struct Named {
    said: String,
    loaded: BTreeMap<String, BTreeSet<String>>,
}

#[test]
fn model_types_of_the_table_have_the_prefixes_and_heads_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    common::run_python("naming.py", &["names", dir.path().to_str().unwrap()]);
    let mut classes = 0;
    for case in std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()) {
        let text = std::fs::read_to_string(case.join("names.json")).unwrap();
        let named: Named = serde_json::from_str(&text).unwrap();
        let base = case.join("base");
        assert_eq!(ModelFiles::open(&base).unwrap().head(), head(&named.said), "{case:?}");
        for (other, theirs) in named.loaded {
            let ours = names(&open(&base, head(&other)));
            let missing: Vec<_> = theirs.difference(&ours).collect();
            let surplus: Vec<_> = ours.difference(&theirs).collect();
            assert!(
                ours == theirs,
                "{case:?} as {other}: missing {missing:?}, surplus {surplus:?}"
            );
            classes += 1;
        }
    }
    assert!(classes > 200, "{classes} classes");
}
