//! Selection over the module trees of real architectures: the norms that transformers reports, the modules that PEFT
//! tunes, and what PEFT makes of our exported configurations.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use ln_tuning::{LnTuningConfig, Norms, Selection, VariableInfo};
use serde::Deserialize;
use tch::Kind;

#[derive(Deserialize)]
struct Described {
    rows: Vec<Row>,
    table: Vec<String>,
}

#[derive(Deserialize)]
struct Row {
    name: String,
    model_type: String,
    tensors: Vec<Entry>,
    norms: BTreeSet<String>,
    /// The names in PEFT's table.
    table: Option<Vec<String>>,
    /// The modules that PEFT tunes with them.
    peft: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    shape: Vec<i64>,
    parameter: bool,
}

impl Row {
    fn variables(&self) -> Vec<VariableInfo> {
        let variable = |entry: &Entry| VariableInfo {
            name: entry.name.clone(),
            shape: entry.shape.clone(),
            kind: Kind::Float,
            is_parameter: entry.parameter,
        };
        self.tensors.iter().map(variable).collect()
    }

    fn select(&self, config: &LnTuningConfig, model_type: bool, norms: Norms) -> Selection {
        let model_type = model_type.then_some(self.model_type.as_str());
        let selection = Selection::new(&self.variables(), config, model_type, norms);
        selection.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// PEFT wraps a container as a whole; here it stands for the modules in it that hold tensors.
    fn leaves(&self, paths: &[String]) -> BTreeSet<String> {
        let modules = self.tensors.iter().map(|e| e.name.rsplit_once('.').map_or("", |(m, _)| m));
        let inside = |m: &&str| paths.iter().any(|p| m == p || m.starts_with(&format!("{p}.")));
        modules.filter(inside).map(str::to_owned).collect()
    }
}

fn paths(selection: &Selection) -> BTreeSet<String> {
    selection.modules().iter().map(|module| module.path.clone()).collect()
}

/// What `plan` prints for the model directories of all architectures.
fn plans_agree(rows: &[Row]) {
    let dir = tempfile::tempdir().unwrap();
    common::run_python("architectures.py", &["save", dir.path().to_str().unwrap()]);
    let here = env!("CARGO_MANIFEST_DIR");
    let build = ["build", "--locked", "--quiet", "--example", "plan"];
    assert!(Command::new(env!("CARGO")).args(build).current_dir(here).status().unwrap().success());
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let plan = |args: &[&str]| {
        Command::new(target.join("debug/examples/plan")).args(args).output().unwrap()
    };
    for row in rows {
        let model = dir.path().join(&row.name);
        let model = model.to_str().unwrap();
        for norms in ["all", "peft"] {
            let output = plan(&["--model", model, "--norms", norms, "--json"]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let modules: BTreeSet<String> =
                serde_json::from_value(plan["modules"].clone()).unwrap();
            let expected = match (norms, &row.peft) {
                // Tied heads are not on disk.
                ("peft", Some(tuned)) => {
                    let tied = |path: &String| path == "lm_head" && !modules.contains(path);
                    row.leaves(tuned).into_iter().filter(|path| !tied(path)).collect()
                }
                ("peft", None) => row
                    .select(&Default::default(), true, Norms::Peft)
                    .modules()
                    .iter()
                    .map(|m| m.path.clone())
                    .collect(),
                _ => row.norms.clone(),
            };
            assert_eq!(modules, expected, "{} {norms}", row.name);
            assert_eq!(plan["model_type"], row.model_type.as_str());
            let sizes =
                |name: &&Entry| modules.contains(name.name.rsplit_once('.').map_or("", |(m, _)| m));
            if norms == "all" {
                let entries = row.tensors.iter().filter(sizes).filter(|entry| entry.parameter);
                let trainable: i64 = entries.map(|entry| entry.shape.iter().product::<i64>()).sum();
                assert_eq!(plan["trainable"], trainable, "{}", row.name);
            }
        }
    }
    let output = plan(&["--model", dir.path().join("nowhere").to_str().unwrap()]);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && words.trim().lines().count() == 1, "{words}");
}

#[test]
fn selections_agree_with_transformers_and_peft_on_every_architecture() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("described.json");
    common::run_python("architectures.py", &["describe", file.to_str().unwrap()]);
    let text = std::fs::read_to_string(&file).unwrap();
    let described: Described = serde_json::from_str(&text).unwrap();
    let types: BTreeSet<&str> = described.rows.iter().map(|row| row.model_type.as_str()).collect();
    assert!(types.len() >= 75, "{} architectures", types.len());
    for model_type in &described.table {
        assert!(types.contains(model_type.as_str()), "PEFT's table knows {model_type}");
    }

    plans_agree(&described.rows);
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
        for (choice, selection) in
            [("all", all), ("found", found), ("peft", peft), ("one", one), ("others", others)]
        {
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
