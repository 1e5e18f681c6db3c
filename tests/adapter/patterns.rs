//! Patterns select what they select in Python: thousands of them, plain and odd, beside `re.fullmatch` and `re.subn`.

use std::collections::{BTreeMap, BTreeSet};

use ln_tuning::{
    ErrorKind, LnTuningConfig, LnTuningModel, Norms, SaveOptions, Selection, VariableInfo,
};
use serde::Deserialize;
use tch::{nn, Device, Kind, Tensor};

use crate::common;

/// Patterns that are refused here although Python takes them.
const REFUSED: &[&str] = &[
    "a character by its name",
    "without regard to case is not known here",
    "where Python finds none",
    "more than 50 deep",
    "a repetition that is too large",
    "exceeds size limit",
    "error building NFA",
    "a condition on a group",
    "a repetition of what may be empty",
    "do not fit a text",
    "there is no group '+1'",
];

/// Names and patterns from Python, and what it makes of them.
#[derive(Deserialize)]
struct Answers {
    names: Vec<String>,
    patterns: Vec<(String, Option<Vec<usize>>)>,
    rules: Vec<(String, String, Option<Vec<String>>)>,
}

/// `PROPTEST_CASES=20000 PROPTEST_RNG_SEED=2` looks further.
fn answers() -> Answers {
    let variable = |name: &str, absent: &str| std::env::var(name).unwrap_or(absent.into());
    let seed = variable("PROPTEST_RNG_SEED", "1");
    let out = common::run_python("patterns.py", &[&seed, &variable("PROPTEST_CASES", "2000")]);
    serde_json::from_str(&out).unwrap()
}

fn selected(variables: &[VariableInfo], pattern: &str) -> ln_tuning::Result<Vec<String>> {
    let config = LnTuningConfig::default().target_pattern(pattern);
    match Selection::new(variables, &config, None, Norms::Peft) {
        Ok(selection) => Ok(selection.modules().iter().map(|module| module.path.clone()).collect()),
        Err(error) if error.kind() == ErrorKind::NoMatchingModules => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[test]
fn patterns_select_what_they_select_in_python_or_are_refused_for_a_reason_of_the_list() {
    let Answers { names, patterns, .. } = answers();
    let variable = |name: &String| VariableInfo {
        name: format!("{name}.weight"),
        shape: vec![4],
        kind: Kind::Float,
        is_parameter: true,
    };
    let variables: Vec<VariableInfo> = names.iter().map(variable).collect();
    let (mut wrong, mut refused, mut valid) = (Vec::new(), BTreeMap::new(), 0);
    for (pattern, expected) in &patterns {
        valid += usize::from(expected.is_some());
        match (selected(&variables, pattern), expected) {
            (Ok(mut found), Some(expected)) => {
                let mut expected: Vec<String> =
                    expected.iter().map(|index| names[*index].clone()).collect();
                found.sort();
                expected.sort();
                if found != expected {
                    wrong.push(format!("{pattern:?}: {found:?}, in Python {expected:?}"));
                }
            }
            (Err(error), None) if error.kind() == ErrorKind::InvalidPattern => {}
            (Err(error), Some(_)) => {
                let text = error.to_string();
                assert!(error.kind() == ErrorKind::InvalidPattern, "{pattern:?}: {text}");
                match REFUSED.iter().find(|reason| text.contains(**reason)) {
                    Some(reason) => *refused.entry(reason).or_insert(0) += 1,
                    None => wrong.push(format!("{pattern:?} is refused: {text}")),
                }
            }
            (found, None) => wrong.push(format!("{pattern:?}: {found:?}, Python refuses it")),
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
    let all: usize = refused.values().sum();
    assert!(valid * 3 > patterns.len() && all * 20 < valid, "{valid} valid, {refused:?}");
}

#[test]
fn key_mappings_rename_what_python_renames_and_refuse_what_python_refuses() {
    let Answers { names, rules, .. } = answers();
    let vs = nn::VarStore::new(Device::Cpu);
    for name in &names {
        let path = name.split('.').fold(vs.root(), |path, part| path / part);
        let _ = path.var("weight", &[2], nn::Init::Const(1.0));
    }
    let config = LnTuningConfig::default().target_pattern("(?s).*");
    let model = LnTuningModel::new(&vs, config).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut same = 0;
    for (pattern, replacement, expected) in rules {
        let options = SaveOptions::default().key_mapping([(&pattern, &replacement)]);
        let rule = format!("{pattern:?} -> {replacement:?}");
        match (model.save_pretrained_with(dir.path(), &options), expected) {
            (Ok(()), Some(expected)) => {
                let path = dir.path().join("adapter_model.safetensors");
                let saved = Tensor::read_safetensors(path).unwrap();
                let key = |name| format!("base_model.model.{name}.ln_tuning_layers.weight");
                let expected: BTreeSet<String> = expected.iter().map(key).collect();
                assert_eq!(
                    saved.into_iter().map(|(key, _)| key).collect::<BTreeSet<_>>(),
                    expected,
                    "{rule}"
                );
                same += 1;
            }
            (Err(error), None) => assert_eq!(error.kind(), ErrorKind::InvalidPattern, "{rule}"),
            (Err(error), Some(_)) => {
                let text = error.to_string();
                assert!(REFUSED.iter().any(|reason| text.contains(reason)), "{rule}: {text}");
            }
            (Ok(()), None) => panic!("{rule}: Python refuses it"),
        }
    }
    assert!(same >= 10, "{same}");
}
