//! `plan` says which tensors of a model would train.

use std::collections::BTreeSet;

use ln_tuning::Norms;

use crate::program::{refusal, report, text};
use crate::trees::{self, paths, Entry};

/// The plans of model directories of all architectures.
#[test]
fn plans_are_the_norms_of_transformers_and_the_modules_of_peft() {
    let dir = tempfile::tempdir().unwrap();
    let rows = trees::describe(Some(dir.path())).rows;
    for row in &rows {
        let model = dir.path().join(&row.name);
        let model = model.to_str().unwrap();
        for norms in ["all", "peft"] {
            let plan = report(&["plan", "--model", model, "--norms", norms, "--json"]);
            let modules: BTreeSet<String> =
                serde_json::from_value(plan["modules"].clone()).unwrap();
            let expected = match (norms, &row.peft) {
                // Tied heads are not on disk.
                ("peft", Some(tuned)) => {
                    let tied = |path: &String| path == "lm_head" && !modules.contains(path);
                    row.leaves(tuned).into_iter().filter(|path| !tied(path)).collect()
                }
                ("peft", None) => paths(&row.select(&Default::default(), true, Norms::Peft)),
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
    refusal(&["plan", "--model", text(&dir.path().join("nowhere"))]);
}
