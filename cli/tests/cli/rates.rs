//! Rates, weight decay and layers: what `train` takes by default, and by place.

use serde_json::{json, Value};

use crate::program::{printed, report, text};
use crate::training;

fn shown(settings: &[&str]) -> Value {
    let mut arguments = vec!["train", "--show", "--set", "task=language"];
    settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
    serde_yaml::from_str(&printed(&arguments)).unwrap()
}

#[test]
fn the_defaults_are_rates_that_work_for_norms() {
    for (task, lr) in [("language", 0.005), ("classifier", 0.01)] {
        let all: Value = serde_yaml::from_str(&printed(&["train", "--sample", task])).unwrap();
        assert_eq!(all["optimizer"]["lr"], lr, "{task}");
        assert_eq!(all["optimizer"]["weight_decay"], 0.);
        let schedule = json!({"name": "cosine", "warmup_steps": null, "warmup_ratio": 0.03});
        assert_eq!(all["schedule"], schedule);
    }
    assert_eq!(shown(&[])["optimizer"]["lr"], 0.005);
}

#[test]
fn warm_up_in_steps_replaces_the_default_part_and_a_run_of_one_step_learns() {
    let training = training().set(&["max_steps=4", "optimizer.lr=0.02"]);
    training.run(&["out=steps", "schedule.warmup_steps=2", "schedule.name=constant"]);
    let rates: Vec<f64> = training.series("steps", "lr").iter().map(|(_, lr)| *lr).collect();
    assert_eq!(rates, [0., 0.01, 0.02, 0.02]);
    // A sample that was written to a file holds the default part, beside steps that a user adds.
    training.run(&["out=both", "schedule.warmup_steps=1", "schedule.warmup_ratio=0.03"]);
    assert_eq!(training.series("both", "lr")[1].1, 0.02);
    let error = training.refusal(&["schedule.warmup_steps=1", "schedule.warmup_ratio=0.1"]);
    assert!(error.contains("leave out one"), "{error}");
    training.run(&["out=one", "max_steps=1"]);
    assert_eq!(training.series("one", "lr"), [(1, 0.02)]);
}

#[test]
fn a_run_that_began_with_former_defaults_goes_on_with_them() {
    let training = training();
    // The rate is given by the other tests' settings, so that two defaults differ.
    let former = ["optimizer.weight_decay=0.01", "schedule.warmup_ratio=0"];
    training.run(&[&["max_steps=4", "out=whole"][..], &former].concat());
    training.run(&[&["max_steps=4", "save_interval=2"][..], &former].concat());
    std::fs::remove_dir_all(training.path("out/checkpoints/step-4")).unwrap();
    // Former versions had no 'base'.
    let state = "out/checkpoints/step-2/state.json";
    let mut before: Value = serde_json::from_str(&training.read(state)).unwrap();
    assert_eq!(before["settings"].as_object_mut().unwrap().remove("base"), Some(json!("mapped")));
    // And packed rows for all models.
    assert_eq!(before["settings"]["data"]["packing"].take(), Value::Null);
    before["settings"]["data"]["packing"] = json!(true);
    training.write(state, &before.to_string());
    let printed = training.run(&["max_steps=4", "save_interval=2"]);
    let line = "'out' holds a run with the defaults of its time, which it keeps: 'optimizer.weight_decay' 0.01 (now 0), \
                'schedule.warmup_ratio' 0 (now 0.03)";
    assert!(printed.contains(line) && printed.contains("resuming after step 2"), "{printed}");
    let bytes = |out: &str| {
        std::fs::read(training.path(out).join("adapter/adapter_model.safetensors")).unwrap()
    };
    assert!(bytes("out") == bytes("whole"));
    // A setting that is given counts.
    let error = training.refusal(&["max_steps=4", "optimizer.weight_decay=0"]);
    assert!(error.contains("'optimizer.weight_decay': 0.01, and it is 0 now"), "{error}");
}

#[test]
fn rates_and_decay_by_place_and_bands_of_layers_are_taken_or_refused_with_what_there_is() {
    let training =
        training().set(&["max_steps=2", "schedule.name=constant", "schedule.warmup_ratio=0"]);
    for (setting, words) in [
        ("optimizer.weight_decay.behind=1", "'behind' is no place of norms"),
        ("optimizer.weight_decay.qk=1", "no norm that trains is there; there are: pre, final"),
        ("optimizer.lr={pre: 0.1}", "'optimizer.lr' has no 'default'"),
        ("optimizer.lr={default: 0.1, final: -1}", "'optimizer.lr.final': the learning rate is -1"),
        ("optimizer.weight_decay=-1", "'optimizer': wd is -1"),
        ("layers=2..3", "the model has 2 layers, counted from 0: give a band up to ..2"),
        ("layers=1..1", "which holds none: the model has 2 layers"),
        ("layers=8", "a band of layers such as 8..24"),
    ] {
        let error = training.refusal(&[setting]);
        assert!(error.contains(words), "{setting}: {error}");
    }
    // Norms with a rate of 0 stay as they are, and decay alone moves none of the others.
    training.run(&["optimizer.lr={default: 0.02, pre: 0}", "optimizer.weight_decay.pre=0.5"]);
    training.run(&["out=band", "layers=1.."]);
    let adapter = |out: &str| training.path(out).join("adapter");
    let moved = report(&[
        "inspect",
        text(&adapter("out")),
        "--base",
        text(&crate::model("llama")),
        "--json",
    ]);
    for row in moved["moved"].as_array().unwrap() {
        let is_final = row["module"] == "model.norm";
        assert_eq!(row["max_abs"].as_f64().unwrap() > 0., is_final, "{row}");
    }
    let band = report(&["inspect", text(&adapter("band")), "--json"]);
    let targets = ["input_layernorm", "post_attention_layernorm"]
        .map(|name| format!("model.layers.1.{name}"));
    assert_eq!(band["config"]["target_modules"], json!(targets));
    let plan =
        report(&["plan", "--model", text(&crate::model("llama")), "--layers", "1..", "--json"]);
    assert_eq!(plan["modules"], json!(targets));
}

/// The arguments of a run, with more behind them.
fn found(training: &crate::program::Training, settings: &[&str], more: &[&str]) -> String {
    let output = training.command(settings).args(more).output().unwrap();
    let (out, err) = crate::program::texts(&output);
    assert!(output.status.success(), "{out}\n{err}");
    out
}

#[test]
fn a_run_after_a_search_for_its_rate_ends_as_one_without_bit_for_bit() {
    let training = training().set(&["max_steps=3", "accumulation=2", "save_interval=3"]);
    for (name, settings) in [
        ("f32", &["seed=3"][..]),
        ("bf16", &["kind=bf16", "precision=model", "optimizer.lr={default: 0.02, final: 0.01}"]),
        ("f16", &["kind=f16", "loss_scale=dynamic", "checkpointing=all"]),
    ] {
        let out = |kind: &str| format!("out={name}-{kind}");
        training.run(&[settings, &[&out("plain")]].concat());
        let found =
            found(&training, &[settings, &[&out("found")]].concat(), &["--find-lr=then-train"]);
        assert!(found.contains("suggestion: optimizer.lr="), "{found}");
        for file in
            ["adapter/adapter_model.safetensors", "checkpoints/step-3/optimizer.safetensors"]
        {
            let bytes = |kind: &str| {
                std::fs::read(training.path(&format!("{name}-{kind}")).join(file)).unwrap()
            };
            assert!(bytes("plain") == bytes("found"), "{name}: {file}");
        }
        let losses = |kind: &str| training.series(&format!("{name}-{kind}"), "loss");
        assert_eq!(losses("plain"), losses("found"));
    }
}

#[test]
fn a_search_for_the_rate_writes_a_picture_and_numbers_and_trains_nothing() {
    let training = training();
    let said = found(&training, &["out=lm"], &["--find-lr"]);
    for part in ["rate       loss   smoothed", "1.0e-5", "a tenth of the rate", "lm/lr_finder.svg"]
    {
        assert!(said.contains(part), "'{part}' is not in: {said}");
    }
    let mut left: Vec<_> =
        std::fs::read_dir(training.path("lm")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["lr_finder.csv", "lr_finder.svg"]);
    let csv = training.read("lm/lr_finder.csv");
    let rows: Vec<Vec<f64>> = csv
        .lines()
        .skip(1)
        .map(|row| row.split(',').map(|n| n.parse().unwrap()).collect())
        .collect();
    assert!(csv.starts_with("lr,loss,smoothed\n") && (20..=60).contains(&rows.len()), "{csv}");
    assert!(
        (rows[0][0] - 1e-5).abs() < 1e-12 && rows.windows(2).all(|pair| pair[0][0] < pair[1][0])
    );
    // The first loss is that of a run's first step.
    training.run(&["out=run", "max_steps=1"]);
    assert_eq!(rows[0][1], training.series("run", "loss")[0].1);
    let svg = training.read("lm/lr_finder.svg");
    assert!(svg.contains("loss over the learning rate") && svg.contains("<polyline"));
}

/// The loss at each scale, of `inspect`.
fn shift(adapter: &std::path::Path, base: &std::path::Path, more: &[&str]) -> Value {
    let data = ["inspect", text(adapter), "--base", text(base), "--json"];
    report(
        &[&data[..], &["--set", "device=cpu", "--set", "threads=1", "--set", "workers=1"], more]
            .concat(),
    )["shift"]
        .take()
}

fn at(shift: &Value, scale: f64, name: &str) -> f64 {
    let rows = shift["rows"].as_array().unwrap();
    rows.iter().find(|row| row["scale"] == scale).unwrap()[name].as_f64().unwrap()
}

#[test]
fn the_loss_over_the_scale_begins_at_the_base_and_passes_the_adapter() {
    let training = training().set(&["max_steps=12", "data.eval=eval.txt", "eval_interval=12"]);
    training.write("eval.txt", &crate::text(9));
    training.run(&[]);
    training.run(&["out=still", "max_steps=1", "eval_interval=1", "optimizer.lr=0"]);
    let (adapter, base) = (training.path("out/adapter"), crate::model("llama"));
    let (data, svg) = (training.path("eval.txt"), training.path("loss.svg"));
    let settings = ["--set", "data.max_length=64", "--set", "batch_size=4"];
    let more = [&["--data", text(&data), "--loss-curve", text(&svg)][..], &settings].concat();
    let found = shift(&adapter, &base, &more);
    assert_eq!(found["rows"].as_array().unwrap().len(), 7);
    assert_eq!(at(&found, 0., "eval_loss"), training.series("still", "eval_loss")[0].1);
    assert_eq!(at(&found, 1., "eval_loss"), training.series("out", "eval_loss")[0].1);
    assert_eq!(at(&found, 1., "perplexity"), at(&found, 1., "eval_loss").exp());
    let svg = std::fs::read_to_string(svg).unwrap();
    assert!(svg.contains("scale of the learned shift") && svg.contains("<polyline"));
    let arguments = ["inspect", text(&adapter), "--base", text(&base), "--set", "device=cpu"];
    let table = printed(&[&arguments[..], &["--data", text(&data)], &settings].concat());
    for part in ["scale    eval_loss   perplexity", "  the base", "  the adapter", "  lowest"] {
        assert!(table.contains(part), "'{part}' is not in: {table}");
    }

    for setting in ["model=other", "data.train=other.txt"] {
        let error = crate::program::refusal(
            &[&arguments[..], &["--data", text(&data), "--set", setting]].concat(),
        );
        assert!(error.contains("the model is that of `--base`"), "{error}");
    }

    // The model merged at a scale is the one that was evaluated.
    let merged = training.path("merged");
    let arguments =
        ["merge", "--base", text(&base), "--adapter", text(&adapter), "--out", text(&merged)];
    let report = report(&[&arguments[..], &["--scale", "0.5", "--json"]].concat());
    assert_eq!((&report["scale"], &report["unscaled"]), (&json!(0.5), &json!([])));
    let merged = format!("model={}", merged.display());
    training.run(&[&merged, "out=merged-run", "max_steps=1", "eval_interval=1", "optimizer.lr=0"]);
    assert_eq!(at(&found, 0.5, "eval_loss"), training.series("merged-run", "eval_loss")[0].1);
}

#[test]
fn a_new_head_stays_whole_at_every_scale_and_is_named() {
    let training =
        crate::classifier::training("bert").set(&["data.train=train.csv", "max_steps=20"]);
    let rows = crate::classifier::rows(16);
    training.write("train.csv", &crate::classifier::csv(&rows, ["10 foxes", "9 pennies"]));
    training.write("eval.csv", &crate::classifier::csv(&rows[..6], ["10 foxes", "9 pennies"]));
    training.write("other.csv", &crate::classifier::csv(&rows, ["fox", "penny"]));
    let said =
        found(&training, &["data.eval=eval.csv", "eval_interval=20"], &["--find-lr=then-train"]);
    assert!(said.contains("suggestion: optimizer.lr="), "{said}");
    let (adapter, base) = (training.path("out/adapter"), crate::classifier::model("bert"));
    let data = training.path("eval.csv");
    let found = shift(&adapter, &base, &["--data", text(&data), "--set", "batch_size=8"]);
    for (name, of) in [("eval_loss", 1e-6), ("accuracy", 0.)] {
        let expected = training.series("out", name)[0].1;
        assert!((at(&found, 1., name) - expected).abs() <= of, "{name}: {found:#}");
    }
    let heads: Vec<&str> =
        found["unscaled"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    assert!(heads.len() == 2 && heads.iter().all(|key| key.contains("classifier.")), "{heads:?}");
    assert!(at(&found, 0., "eval_loss") != at(&found, 1., "eval_loss"));
    let other = training.path("other.csv");
    let error = crate::program::refusal(&[
        "inspect",
        text(&adapter),
        "--base",
        text(&base),
        "--data",
        text(&other),
        "--set",
        "device=cpu",
    ]);
    assert!(error.contains("the labels of the data (fox, penny) are not those of the adapter (9 pennies, 10 foxes)"), "{error}");
}
