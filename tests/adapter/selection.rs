//! PEFT's rules for choosing modules, on small trees of names.

use std::collections::BTreeSet;

use ln_tuning::{
    natural_cmp, ErrorKind, LnTuningConfig, Norms, Role, Selection, TaskType, VariableInfo,
};
use proptest::prelude::*;
use tch::Kind;

pub fn variable(name: &str, shape: &[i64]) -> VariableInfo {
    VariableInfo { name: name.into(), shape: shape.into(), kind: Kind::Float, is_parameter: true }
}

/// Two blocks of attention, MLP and two norms, a last norm, an embedding, BatchNorm statistics and a head.
fn tree() -> Vec<VariableInfo> {
    let mut variables = vec![
        variable("embed.weight", &[50, 8]),
        variable("norm.weight", &[8]),
        variable("norm.bias", &[8]),
        variable("batch_norm.weight", &[8]),
        variable("batch_norm.bias", &[8]),
        variable("batch_norm.running_mean", &[8]),
        variable("batch_norm.running_var", &[8]),
        variable("score.weight", &[3, 8]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("attn.q_proj.weight", vec![8, 8]),
            ("attn.q_proj.bias", vec![8]),
            ("attn.q_norm.weight", vec![4]),
            ("input_norm.weight", vec![8]),
            ("mlp.up.weight", vec![16, 8]),
            ("mlp.down.weight", vec![8, 16]),
            ("out_norm.weight", vec![8]),
        ] {
            variables.push(variable(&format!("layers.{layer}.{name}"), &shape));
        }
    }
    variables
}

pub fn select(config: &LnTuningConfig) -> ln_tuning::Result<Vec<String>> {
    let selection = Selection::new(&tree(), config, None, Norms::Peft)?;
    Ok(selection.modules().iter().map(|module| module.path.clone()).collect())
}

pub fn config() -> LnTuningConfig {
    LnTuningConfig::default()
}

#[test]
fn a_list_matches_whole_paths_and_ends_after_a_dot() {
    let chosen = select(&config().target_modules(["norm", "0.input_norm"])).unwrap();
    assert_eq!(chosen, ["layers.0.input_norm", "norm"]);
    // `norm` is neither the end of `input_norm` nor of `q_norm`.
    assert_eq!(select(&config().target_modules(["norm"])).unwrap(), ["norm"]);
}

#[test]
fn a_string_is_a_pattern_for_the_whole_path() {
    assert_eq!(select(&config().target_pattern("norm")).unwrap(), ["norm"]);
    let chosen = select(&config().target_pattern(r"layers\.(?!0)\d+\.\w+_norm")).unwrap();
    assert_eq!(chosen, ["layers.1.input_norm", "layers.1.out_norm"]);
}

#[test]
fn excluding_comes_before_saving_and_saving_before_targeting() {
    let wanted = config().target_modules(["input_norm", "out_norm", "score", "norm"]);
    let chosen = select(&wanted.clone().exclude_modules(["0.input_norm", "norm"])).unwrap();
    assert_eq!(chosen, ["layers.0.out_norm", "layers.1.input_norm", "layers.1.out_norm", "score"]);
    let selection =
        Selection::new(&tree(), &wanted.modules_to_save(["score"]), None, Norms::Peft).unwrap();
    let saved: Vec<_> = selection.modules().iter().filter(|m| m.role == Role::Whole).collect();
    assert_eq!((saved.len(), saved[0].path.as_str()), (1, "score"));
}

/// The modules that are saved as a whole.
fn saved(config: &LnTuningConfig) -> ln_tuning::Result<Vec<String>> {
    let selection = Selection::new(&tree(), config, None, Norms::Peft)?;
    let saved = selection.modules().iter().filter(|module| module.role == Role::Whole);
    Ok(saved.map(|module| module.path.clone()).collect())
}

#[test]
fn saving_compares_the_letters_at_the_end_of_a_path_as_peft_does() {
    let norm = config().target_modules(["norm"]);
    let names = |names: &[&str]| saved(&norm.clone().modules_to_save(names.iter().copied()));
    let of_layers = |name: &str| (0..2).map(|i| format!("layers.{i}.{name}")).collect::<Vec<_>>();
    assert_eq!(names(&["proj"]).unwrap(), of_layers("attn.q_proj"));
    assert_eq!(
        names(&["t_norm"]).unwrap(),
        ["layers.0.input_norm", "layers.0.out_norm", "layers.1.input_norm", "layers.1.out_norm"]
    );
    assert_eq!(names(&["core", "nothing"]).unwrap(), ["score"]);
    // Excluding keeps a module from being tuned, not from being saved.
    let excluded = norm.clone().exclude_modules(["score"]).modules_to_save(["score"]);
    assert_eq!(saved(&excluded).unwrap(), ["score"]);
    // A container, with all that is in it.
    assert_eq!(names(&["0.mlp"]).unwrap(), ["layers.0.mlp.down", "layers.0.mlp.up"]);
    // A module in both settings: PEFT refuses it as well.
    for (targets, name, named) in [
        (["norm", "input_norm"], "norm", "layers.0.input_norm"),
        (["norm", "score"], "core", "score"),
        (["norm", "up"], "lp", "layers.0.mlp.up"),
    ] {
        let both = config().target_modules(targets).modules_to_save([name]);
        let error = select(&both).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(&format!("'{named}'")), "{error}");
    }
    assert_eq!(names(&[""]).unwrap_err().kind(), ErrorKind::InvalidConfig);
}

#[test]
fn a_task_saves_its_head_where_there_is_one() {
    let of_task = |task| saved(&config().target_modules(["input_norm"]).task_type(task)).unwrap();
    assert_eq!(of_task(TaskType::SeqCls), ["score"]);
    assert_eq!(of_task(TaskType::TokenCls), ["score"]);
    assert!(of_task(TaskType::QuestionAns).is_empty());
    assert!(of_task(TaskType::CausalLm).is_empty());
    let wanted = config().target_modules(["input_norm"]).task_type(TaskType::SeqCls);
    let selection = Selection::new(&tree(), &wanted.modules_to_save(["embed"]), None, Norms::Peft);
    let exported = selection.unwrap().export_config(&config());
    assert_eq!(exported.modules_to_save.unwrap(), ["embed", "classifier", "score"]);
}

/// PEFT fails to load an adapter that saves a module and one inside it.
#[test]
fn saved_modules_do_not_nest_in_what_is_written() {
    let variables: Vec<VariableInfo> =
        ["classifier.dense", "classifier.out_proj", "norm", "q.out_proj"]
            .map(|path| variable(&format!("{path}.weight"), &[4]))
            .into();
    let written = |names: &[&str]| {
        let wanted = config().target_modules(["norm"]).modules_to_save(names.iter().copied());
        let selection = Selection::new(&variables, &wanted, None, Norms::Peft).unwrap();
        selection.export_config(&wanted).modules_to_save.unwrap()
    };
    assert_eq!(written(&["classifier", "fier.out_proj"]), ["classifier"]);
    assert_eq!(written(&["classifier", "out_proj"]), ["classifier", "q.out_proj"]);
    assert_eq!(written(&["dense", "out_proj"]), ["dense", "out_proj"]);
}

#[test]
fn excludes_that_match_nothing_are_noticed() {
    let noticed = |config: LnTuningConfig| {
        Selection::new(&tree(), &config, None, Norms::Peft).unwrap().excludes_nothing()
    };
    let wanted = config().target_modules(["norm", "input_norm"]);
    assert!(noticed(wanted.clone().exclude_modules(["nrom"])));
    assert!(!noticed(wanted.clone().exclude_modules(["norm"])));
    assert!(!noticed(wanted));
}

#[test]
fn any_module_can_be_targeted_a_whole_block_too() {
    assert_eq!(select(&config().target_modules(["embed"])).unwrap(), ["embed"]);
    let chosen = select(&config().target_modules(["0.mlp"])).unwrap();
    assert_eq!(chosen, ["layers.0.mlp.down", "layers.0.mlp.up"]);
    let both = select(&config().target_modules(["0.mlp", "up"])).unwrap();
    assert_eq!(both, ["layers.0.mlp.down", "layers.0.mlp.up", "layers.1.mlp.up"]);
}

#[test]
fn a_block_with_tensors_of_its_own_is_one_module() {
    let mut variables = tree();
    variables.push(variable("layers.1.mlp.scale", &[8]));
    let select = |config: &LnTuningConfig| {
        let selection = Selection::new(&variables, config, None, Norms::Peft)?;
        let exported = selection.export_config(config).target_modules;
        Ok::<_, ln_tuning::Error>((selection.modules().to_vec(), exported))
    };
    let (modules, exported) = select(&config().target_modules(["1.mlp", "up"])).unwrap();
    let paths: Vec<&str> = modules.iter().map(|module| module.path.as_str()).collect();
    assert_eq!(paths, ["layers.0.mlp.up", "layers.1.mlp"]);
    let inside = ["scale", "down.weight", "up.weight"].map(|name| format!("layers.1.mlp.{name}"));
    assert_eq!(modules[1].variables, inside);
    assert_eq!(
        exported,
        Some(ln_tuning::Modules::List(paths.iter().map(|p| p.to_string()).collect()))
    );
    // PEFT copies such a block as a whole: a part cannot be left out.
    let error = select(&config().target_modules(["1.mlp"]).exclude_modules(["up"])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("layers.1.mlp.up"), "{error}");
}

#[test]
fn each_way_to_select_nothing_is_an_error_of_its_own() {
    for (config, kind, words) in [
        (config().target_modules(["input_nrom"]), ErrorKind::NoMatchingModules, "input_norm"),
        (config().target_pattern("layernorm"), ErrorKind::NoMatchingModules, "nearest"),
        (config().target_modules::<&str>([]), ErrorKind::NoTargetModules, "empty"),
        (config().target_pattern(""), ErrorKind::NoTargetModules, "empty"),
        (
            config().target_modules(["norm"]).exclude_pattern(".*"),
            ErrorKind::AllModulesExcluded,
            "exclude_modules",
        ),
        (
            config().target_modules(["score"]).modules_to_save(["score"]),
            ErrorKind::AllModulesExcluded,
            "modules_to_save",
        ),
        (config().target_pattern("*norm"), ErrorKind::InvalidPattern, "target_modules"),
        (
            config().target_modules(["norm"]).exclude_pattern("("),
            ErrorKind::InvalidPattern,
            "exclude_modules",
        ),
        (config().modules_to_save(["classifier"]), ErrorKind::NoMatchingModules, "classifier"),
        (config().target_pattern("all-linear"), ErrorKind::Unsupported, "all-linear"),
    ] {
        let error = select(&config).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    let error = Selection::new(&tree()[..1], &config(), None, Norms::Peft).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoTargetModules);
}

#[test]
fn numbers_in_names_are_ordered_as_numbers() {
    let mut names = ["h.10.x", "h.9.x", "h.9.b", "h", "h.09.x", "g.2"];
    names.sort_by(|a, b| natural_cmp(a, b));
    assert_eq!(names, ["g.2", "h", "h.9.b", "h.09.x", "h.9.x", "h.10.x"]);
}

fn path() -> impl Strategy<Value = String> {
    let segment = prop_oneof!["[a-c]", "norm", "ln_1", "[0-9]{1,2}"];
    prop::collection::vec(segment, 1..5).prop_map(|segments| segments.join("."))
}

proptest! {
    /// An exported configuration, read as PEFT reads it, selects the same modules again.
    #[test]
    fn an_exported_configuration_selects_the_same(
        paths in prop::collection::btree_set(path(), 1..12),
        targets in prop::collection::vec(path(), 1..4),
        excludes in prop::collection::vec(path(), 0..2),
        saves in prop::collection::vec("[a-c]|m|[bc]\\.norm|1", 0..2),
        pattern: bool,
    ) {
        let variables: Vec<VariableInfo> =
            paths.iter().map(|path| variable(&format!("{path}.weight"), &[4])).collect();
        let wanted = if pattern {
            config().target_pattern(format!("(.*\\.)?({})", targets.join("|")))
        } else {
            config().target_modules(targets)
        };
        let wanted = wanted.exclude_modules(excludes).modules_to_save(saves);
        let Ok(selection) = Selection::new(&variables, &wanted, None, Norms::Peft) else {
            return Ok(());
        };
        let exported = selection.export_config(&wanted);
        let again = Selection::new(&variables, &exported, None, Norms::Peft).unwrap();
        prop_assert_eq!(selection.modules(), again.modules());
        prop_assert_eq!(again.export_config(&exported), exported);
    }

    /// A list takes the modules at and below the paths that end in an entry, each with all that is in it.
    #[test]
    fn a_list_selects_what_its_rule_says(
        paths in prop::collection::btree_set(path(), 1..12),
        targets in prop::collection::vec(path(), 1..4),
    ) {
        let variables: Vec<VariableInfo> =
            paths.iter().map(|path| variable(&format!("{path}.weight"), &[4])).collect();
        let ends = |path: &str| {
            targets.iter().any(|t| path == t || path.ends_with(&format!(".{t}")))
        };
        let around = |path: &str| -> Vec<String> {
            path.match_indices('.').map(|(at, _)| path[..at].to_owned()).collect()
        };
        let matched: BTreeSet<&String> = paths
            .iter()
            .filter(|path| ends(path) || around(path).iter().any(|outer| ends(outer)))
            .collect();
        let expected: BTreeSet<String> = matched
            .iter()
            .filter(|path| !around(path).iter().any(|outer| matched.contains(outer)))
            .map(|path| path.to_string())
            .collect();
        let found = Selection::new(&variables, &config().target_modules(&targets), None, Norms::Peft);
        let found = found.map_or(BTreeSet::new(), |selection| {
            selection.modules().iter().map(|module| module.path.clone()).collect()
        });
        prop_assert_eq!(found, expected);
    }

    /// The order is total: sorting twice, or backwards, gives one result.
    #[test]
    fn natural_order_is_an_order(names in prop::collection::btree_set("[a-b0-9.]{0,6}", 0..12)) {
        let mut sorted: Vec<String> = names.iter().cloned().collect();
        sorted.sort_by(|a, b| natural_cmp(a, b));
        let mut reversed: Vec<String> = names.into_iter().rev().collect();
        reversed.sort_by(|a, b| natural_cmp(a, b));
        prop_assert_eq!(&sorted, &reversed);
        prop_assert_eq!(sorted.iter().collect::<BTreeSet<_>>().len(), sorted.len());
    }
}
