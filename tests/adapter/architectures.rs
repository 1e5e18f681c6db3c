//! Selection over the module trees of real architectures: the norms that transformers reports, the modules that PEFT
//! tunes, and what PEFT makes of our exported configurations.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::common;
use crate::trees::{self, paths, Row};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{Layers, LnTuningConfig, NormPlace, Norms, Selection};

/// Architectures of which a band of layers is tried in PEFT: each takes a second.
const BANDS: [&str; 6] = ["llama", "gpt2", "t5", "bert", "stablelm qk", "modernbert"];

/// The norms at each place, for two layers in each stack: (pre, post, qk, final, embeddings).
const PLACES: [(&str, [usize; 5]); 28] = [
    ("llama", [4, 0, 0, 1, 0]),
    ("gemma2", [4, 4, 0, 1, 0]),
    ("gemma3_text", [4, 4, 4, 1, 0]),
    ("olmo2", [0, 4, 4, 1, 0]),
    ("glm4", [4, 4, 0, 1, 0]),
    ("cohere qk", [2, 0, 4, 1, 0]),
    ("gpt2", [4, 0, 0, 1, 0]),
    ("bloom", [4, 0, 0, 1, 1]),
    ("falcon new", [4, 0, 0, 1, 0]),
    ("opt", [4, 0, 0, 1, 0]),
    ("t5", [10, 0, 0, 2, 0]),
    ("bart", [0, 10, 0, 0, 2]),
    ("mbart", [10, 0, 0, 2, 2]),
    ("marian", [0, 10, 0, 0, 0]),
    ("whisper", [10, 0, 0, 2, 0]),
    // With the norm of the head for masked tokens.
    ("bert", [0, 4, 0, 1, 1]),
    ("roberta", [0, 4, 0, 1, 1]),
    ("distilbert", [0, 4, 0, 1, 1]),
    ("albert", [0, 2, 0, 1, 1]),
    // Its first layer has no norm before attention.
    ("modernbert", [3, 0, 0, 2, 1]),
    ("vit", [4, 0, 0, 1, 0]),
    ("beit", [4, 0, 0, 1, 0]),
    ("dinov2", [4, 0, 0, 1, 0]),
    ("clip", [8, 0, 0, 2, 1]),
    // Two layers in the tower, two in the text model, and in the third and fourth a norm in the connector.
    ("llava", [8, 0, 0, 2, 1]),
    ("idefics3", [8, 0, 0, 2, 0]),
    ("gemma3", [9, 4, 4, 3, 0]),
    ("mistral3", [9, 0, 0, 1, 1]),
];

fn counted(selection: &Selection) -> [usize; 5] {
    let at = |place: NormPlace| {
        selection.modules().iter().filter(|module| module.place == Some(place)).count()
    };
    NormPlace::ALL.map(at)
}

/// The names on disk lead to the same modules as those of the live model.
fn directory_agrees(row: &Row, dir: &Path) {
    let files = ModelFiles::open(dir).unwrap();
    let variables = files.variables();
    for norms in [Norms::All, Norms::Peft] {
        let config = LnTuningConfig::default();
        let selection = Selection::new(&variables, &config, files.model_type(), norms);
        let selection = selection.unwrap_or_else(|error| panic!("{} {norms:?}: {error}", row.name));
        let modules = paths(&selection);
        assert_eq!(modules, row.expected(norms, &modules), "{} {norms:?}", row.name);
        assert_eq!(files.model_type(), Some(row.model_type.as_str()));
        if norms == Norms::All {
            let tuned: BTreeSet<&str> = selection.variables().collect();
            let tuned = variables.iter().filter(|v| v.is_parameter && tuned.contains(&*v.name));
            let trainable: i64 = tuned.map(|v| v.shape.iter().product::<i64>()).sum();
            assert_eq!(trainable, row.parameters(&modules), "{}", row.name);
        }
    }
}

#[test]
fn selections_agree_with_transformers_and_peft_on_every_architecture() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("configs.json");
    let described = trees::describe(dir.path(), &[]);
    let types: BTreeSet<&str> = described.rows.iter().map(|row| row.model_type.as_str()).collect();
    assert!(types.len() >= 75, "{} architectures", types.len());
    for model_type in &described.table {
        assert!(types.contains(model_type.as_str()), "PEFT's table knows {model_type}");
    }

    for row in &described.rows {
        directory_agrees(row, &dir.path().join(&row.name));
    }
    let anything = LnTuningConfig::default();
    let mut configs: BTreeMap<&str, BTreeMap<&str, serde_json::Value>> = BTreeMap::new();
    let mut expected = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in &described.rows {
        let mut check = |what: &str, found: BTreeSet<String>, wanted: &BTreeSet<String>| {
            let missing: Vec<_> = wanted.difference(&found).collect();
            let surplus: Vec<_> = found.difference(wanted).collect();
            if found != *wanted {
                wrong
                    .push(format!("{} {what}: missing {missing:?}, surplus {surplus:?}", row.name));
            }
        };
        let all = row.select(&anything, true, Norms::All);
        check("by our table", paths(&all), &row.norms);
        // A norm per attention head has a 2-D weight (cohere's): that takes the table, or a name.
        let flat = |path: &&String| {
            let weight = format!("{path}.weight");
            row.tensors.iter().any(|e| e.name == weight && e.shape.len() == 1)
        };
        let flat: BTreeSet<String> = row.norms.iter().filter(flat).cloned().collect();
        let found = row.select(&anything, false, Norms::All);
        check("by name and shape", paths(&found), &flat);
        let peft = row.select(&anything, true, Norms::Peft);
        match &row.peft {
            Some(tuned) => check("by PEFT's table", paths(&peft), &row.leaves(tuned)),
            None => check("without an entry in PEFT's table", paths(&peft), &flat),
        }
        if let Some(table) = &row.table {
            let named = row.select(&anything.clone().target_modules(table), false, Norms::Peft);
            check("by the names in PEFT's table", paths(&named), &paths(&peft));
        }

        // Harder to export: one norm of many, and all but one.
        let first = row.norms.first().unwrap();
        let one = row.select(&anything.clone().target_modules([first]), false, Norms::All);
        let others = row.select(&anything.clone().exclude_modules([first]), true, Norms::All);
        let rest =
            row.norms.iter().filter(|path| *path != first && !path.ends_with(&format!(".{first}")));
        check("all but one", paths(&others), &rest.cloned().collect());
        let mut choices = vec![("found", found), ("peft", peft), ("one", one), ("others", others)];
        if BANDS.contains(&row.name.as_str()) {
            // A second layer: PEFT's other methods number layers so, and leave out what is in none.
            let band = all.in_layers(&row.variables(), &anything, Layers::new(1..2)).unwrap();
            let is_second = |path: &&String| {
                path.split('.').find(|part| part.parse::<usize>().is_ok()) == Some("1")
            };
            check(
                "in a band of layers",
                paths(&band),
                &row.norms.iter().filter(is_second).cloned().collect(),
            );
            choices.push(("band", band));
        }
        if let Some((_, places)) = PLACES.iter().find(|(name, _)| *name == row.name) {
            assert_eq!(counted(&all), *places, "{}", row.name);
        }
        choices.push(("all", all));
        for (choice, selection) in choices {
            let config =
                serde_json::from_str(&selection.export_config(&anything).to_json()).unwrap();
            configs.entry(&row.name).or_default().insert(choice, config);
            expected.insert((row.name.clone(), choice.to_owned()), paths(&selection));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    std::fs::write(&file, serde_json::to_string(&configs).unwrap()).unwrap();
    let chosen = common::run_python("architectures.py", &["select", file.to_str().unwrap()]);
    for line in chosen.lines() {
        let (name, choice, modules): (String, String, Vec<String>) =
            serde_json::from_str(line).unwrap();
        let row = described.rows.iter().find(|row| row.name == name).unwrap();
        let wanted = expected.remove(&(name.clone(), choice.clone())).unwrap();
        assert_eq!(row.leaves(&modules), wanted, "PEFT with our configuration: {name}, {choice}");
    }
    assert!(expected.is_empty(), "{} configurations were not tried", expected.len());
}
