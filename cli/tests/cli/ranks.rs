//! Several processes train together as one does.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Output};

use serde_json::{json, Value};
use tch::{Kind, Tensor};

use crate::program::{texts, Training};
use crate::{classifier, common, pictures_train, program, training};

/// Starts the ranks of a run as a launcher does, each with settings of its own.
pub fn start(training: &Training, size: usize, more: impl Fn(usize) -> Vec<String>) -> Vec<Child> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let rank = |rank: usize| {
        let more = more(rank);
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let mut command = training.command(&more);
        command.args(["--ddp-timeout", "60"]);
        for (name, value) in [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", size)] {
            command.env(name, value.to_string());
        }
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.spawn().unwrap()
    };
    (0..size).map(rank).collect()
}

pub fn ended(ranks: Vec<Child>) -> Vec<Output> {
    ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect()
}

/// The words that rank 0 prints in a run that succeeds. The others say nothing.
pub fn printed(outputs: Vec<Output>) -> String {
    for (rank, output) in outputs.iter().enumerate() {
        let (out, err) = texts(output);
        assert!(output.status.success(), "rank {rank}: {}\n{out}\n{err}", output.status);
        assert!(rank == 0 || (out.is_empty() && err.is_empty()), "rank {rank}: {out}\n{err}");
    }
    texts(&outputs[0]).0
}

fn run(training: &Training, size: usize, more: &[&str]) -> String {
    let more: Vec<String> = more.iter().map(|setting| (*setting).to_owned()).collect();
    printed(ended(start(training, size, |_| more.clone())))
}

/// The largest difference between the weights of two adapters, or the moments of two checkpoints.
fn apart(a: &Path, b: &Path) -> f64 {
    let read = |path: &Path| {
        let mut tensors = Tensor::read_safetensors(path).unwrap();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    };
    let (a, b) = (read(a), read(b));
    assert_eq!(a.len(), b.len());
    let apart = a.iter().zip(&b).map(|((name, a), (other, b))| {
        assert_eq!(name, other);
        (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
    });
    apart.fold(0., f64::max)
}

/// A run in `out` ended as the one in `one`, but for rounding.
fn assert_same(training: &Training, one: &str, out: &str) {
    let path = |out: &str, file: &str| training.path(out).join(file);
    for file in ["adapter/adapter_model.safetensors", "checkpoints/step-5/optimizer.safetensors"] {
        let apart = apart(&path(one, file), &path(out, file));
        assert!(apart < 1e-6, "{out}/{file} is {apart:e} from that of one process");
    }
    for key in ["loss", "eval_loss", "grad_norm", "tokens"] {
        let (expected, found) = (training.series(one, key), training.series(out, key));
        assert_eq!(expected.len(), found.len(), "{out}, {key}");
        for ((step, a), (other, b)) in expected.into_iter().zip(found) {
            assert_eq!(step, other);
            assert!(
                (a - b).abs() < 1e-6 * a.abs().max(1.),
                "{out}, step {step}: {key} {b}, not {a}"
            );
        }
    }
}

/// Five steps in an epoch of 48 rows and 12 to evaluate on, the last with some of the rows that others have.
pub fn language() -> Training {
    let more = ["data.packing=false", "data.eval_fraction=0.2", "eval_interval=1"];
    let training = training().set(&more);
    training.set(&[
        "save_interval=1",
        "keep_last=9",
        "batch_size=null",
        "global_batch_size=12",
        "epochs=1",
    ])
}

/// Copies the checkpoints up to a step, as of a run that was killed then.
fn cut_off(training: &Training, from: &str, to: &str, last: u64) {
    let (from, to) = (training.path(from), training.path(to));
    let folder = to.join("checkpoints");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(from.join("metrics.jsonl"), to.join("metrics.jsonl")).unwrap();
    for step in 1..=last {
        let name = format!("checkpoints/step-{step}");
        std::fs::create_dir_all(to.join(&name)).unwrap();
        for file in std::fs::read_dir(from.join(&name)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(&name).join(file.file_name())).unwrap();
        }
        let file = to.join(&name).join("state.json");
        let text = std::fs::read_to_string(&file).unwrap();
        let mut state: Value = serde_json::from_str(&text).unwrap();
        state["settings"]["out"] = json!(to.file_name().unwrap().to_str());
        std::fs::write(file, state.to_string()).unwrap();
    }
}

#[test]
fn ranks_train_as_one_process_does_and_others_go_on_from_their_checkpoints() {
    let training = language();
    // 51 rows: the last step has 3.
    training.write("train.txt", &crate::text(64));
    training.run(&["out=one"]);
    let steps = training.checkpoints("one");
    assert_eq!(steps, [1, 2, 3, 4, 5]);

    // torchrun itself, beside ranks that have batches of one row and several of them in a step.
    let out = |name: &str| format!("out={}", training.path(name).display());
    let settings = training.path("settings.yaml");
    let mut command: Vec<String> =
        ["--standalone", "--nproc-per-node", "2", "--no-python"].map(String::from).into();
    command.push(program::path().into_string().unwrap());
    command.extend(["train".into(), settings.display().to_string()]);
    let data = format!("data.train={}", training.path("train.txt").display());
    for setting in training.settings.iter().chain([&out("torchrun"), &data]) {
        command.extend(["--set".into(), setting.clone()]);
    }
    let several = start(&training, 3, |_| {
        vec!["out=three".into(), "accumulation=2".into(), "tensorboard=true".into()]
    });
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let (status, printed_by_all, err) = common::try_python("torchrun.py", &command);
    assert_eq!(status, 0, "{printed_by_all}\n{err}");
    assert_eq!(printed_by_all.matches("2 ranks, 12 rows in a step").count(), 1, "{printed_by_all}");
    assert_eq!(printed_by_all.matches("the adapter is in").count(), 1, "{printed_by_all}");
    let printed_by_first = printed(ended(several));
    assert!(
        printed_by_first.contains("'batch_size' 2 × 'accumulation' 2 × 3"),
        "{printed_by_first}"
    );
    assert_same(&training, "one", "torchrun");
    assert_eq!(std::fs::read_dir(training.path("three/tensorboard")).unwrap().count(), 1);

    // Two, four and three go on in turn, from steps that one, two and four have made.
    let mut before = "one";
    for (size, out, last) in [(2, "two", 1), (4, "four", 2), (3, "last", 4)] {
        cut_off(&training, before, out, last);
        let printed = run(&training, size, &[&format!("out={out}")]);
        assert!(printed.contains(&format!("resuming after step {last} of 5")), "{printed}");
        assert!(!printed.contains("from now on"), "{printed}");
        assert_same(&training, "one", out);
        before = out;
    }

    // A checkpoint of a former version says how many batches were done, and nothing of ranks.
    cut_off(&training, "one", "former", 3);
    let file = training.path("former/checkpoints/step-3/state.json");
    let mut state: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(state["rows"], 27);
    let state_of = state.as_object_mut().unwrap();
    for key in ["rows", "group", "world_size", "global_batch_size"] {
        state_of.remove(key).unwrap();
    }
    state_of.insert("batch".into(), json!(3));
    let settings = state["settings"].as_object_mut().unwrap();
    settings.remove("global_batch_size");
    settings.insert("batch_size".into(), json!(12));
    std::fs::write(&file, state.to_string()).unwrap();
    training.run(&["out=former"]);
    for file in ["adapter/adapter_model.safetensors", "checkpoints/step-5/optimizer.safetensors"] {
        let bytes = |out: &str| std::fs::read(training.path(out).join(file)).unwrap();
        assert!(bytes("former") == bytes("one"), "{file}");
    }

    // With other steps the data goes on where it stood: 27 of 51 rows, then 24 in steps of 8.
    cut_off(&training, "one", "larger", 3);
    let printed = run(&training, 2, &["out=larger", "batch_size=4", "global_batch_size=null"]);
    for words in ["a step has 8 rows from now on", "it had 12, with 1 ranks", "step 3 of 6"] {
        assert!(printed.contains(words), "{printed}");
    }
}

#[test]
fn rows_without_pictures_stages_packed_rows_and_a_streamed_base_are_shared_as_well() {
    // A third of the rows have no picture, so that a rank may have no gradient for what sees.
    let stages = "stages=[{recipe: connector, max_steps: 2}, {recipe: layernorm, max_steps: 3}]";
    let seeing = pictures_train::training("llava")
        .set(&["batch_size=null", "global_batch_size=4", "data.packing=false", stages])
        .set(&["optimizer.lr=0.003"]);
    let more = ["base=streamed", "data.packing=true", "batch_size=2", "max_steps=4"];
    let streamed = training().set(&more).set(&["data.eval_fraction=0.2"]);
    let settings = |more: &'static [&'static str]| {
        move |_| more.iter().map(|setting| (*setting).to_owned()).collect()
    };
    let runs =
        [start(&seeing, 2, settings(&["out=two"])), start(&streamed, 3, settings(&["out=three"]))];
    seeing.run(&["out=one"]);
    streamed.run(&["out=one", "accumulation=3"]);
    for ranks in runs {
        printed(ended(ranks));
    }
    let adapter = "adapter/adapter_model.safetensors";
    for (training, many) in [(&seeing, "two"), (&streamed, "three")] {
        let path = |out: &str| training.path(out).join(adapter);
        let apart = apart(&path("one"), &path(many));
        assert!(apart < 1e-6, "{many}: {apart:e}");
    }
    for stage in ["stage-1", "stage-2"] {
        let losses = |out: &str| seeing.series(&format!("{out}/{stage}"), "loss");
        for (one, two) in losses("one").iter().zip(losses("two")) {
            assert!((one.1 - two.1).abs() < 1e-5, "{stage}: {one:?} {two:?}");
        }
    }
}

#[test]
fn a_classifier_is_scored_by_all_ranks_as_by_one() {
    let training = Training::new(&classifier::model("bert")).set(&[
        "data.train=train.csv",
        "data.eval_fraction=0.3",
        "batch_size=4",
        "eval_interval=1",
        "max_steps=3",
        "optimizer.lr=0.01",
        "threads=1",
        "workers=1",
        "device=cpu",
    ]);
    let row =
        |i: usize| format!("{},{}\n", crate::SENTENCES[i % 4].replace(',', ""), ["a", "b"][i % 2]);
    training.write("train.csv", &format!("text,label\n{}", (0..50).map(row).collect::<String>()));
    training.run(&["out=one", "accumulation=3"]);
    run(&training, 3, &["out=three"]);
    // The first step has a rate of 0: the weights are the same, and so are all sums of the evaluation.
    for key in ["eval_loss", "accuracy", "f1"] {
        let (one, three) = (training.series("one", key), training.series("three", key));
        assert_eq!(one.len(), 3);
        assert_eq!(one[0], three[0], "{key}");
        for (a, b) in one.iter().zip(&three) {
            assert!((a.1 - b.1).abs() < 1e-6, "{key}: {one:?} {three:?}");
        }
    }
}

#[test]
fn ranks_try_the_rates_that_one_process_tries_and_suggest_the_same() {
    let training = language();
    let start = |rank: Option<&str>, out: &str, port: &str| {
        let mut command = training.command(&[out]);
        command.arg("--find-lr");
        if let Some(rank) = rank {
            command.args(["--ddp-timeout", "60"]).env("RANK", rank).env("LOCAL_RANK", rank);
            command.env("WORLD_SIZE", "2").env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port);
        }
        command.spawn().unwrap()
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let ranks = ["0", "1"].map(|rank| start(Some(rank), "out=two", &port));
    let one = printed(ended(vec![start(None, "out=one", "")]));
    let two = printed(ended(ranks.into()));
    let suggested = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("suggestion: "));
        line.unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    assert_eq!(suggested(&one), suggested(&two));
    let losses = |out: &str| -> Vec<f64> {
        let text = training.read(&format!("{out}/lr_finder.csv"));
        let lines = text.lines().skip(1);
        lines.map(|line| line.split(',').nth(1).unwrap().parse().unwrap()).collect()
    };
    for (a, b) in losses("one").iter().zip(losses("two")).take(40) {
        assert!((a - b).abs() < 1e-4 * a, "{a} {b}");
    }
    assert!(!training.path("two/.lock").exists());
}

#[test]
fn what_one_process_can_do_is_done_by_rank_0_alone() {
    let training = language();
    let output = |rank: &str, more: &[&str]| {
        let mut command = training.command(&[]);
        // There are no others.
        command.args(more).env("RANK", rank).env("WORLD_SIZE", "2");
        let output = command.output().unwrap();
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{out}\n{err}");
        assert!(rank == "0" || (out.is_empty() && err.is_empty()), "{out}\n{err}");
        out
    };
    for (arguments, words) in [
        (&["--dry-run"][..], "2 ranks, 12 rows in a step: 'batch_size' 6"),
        (&["--show"], "global_batch_size: 12"),
    ] {
        assert!(output("0", arguments).contains(words));
        output("1", arguments);
    }
    let mut plan = program::program();
    let model = crate::model("llama");
    plan.args(["plan", "--model", model.to_str().unwrap()]);
    plan.env("RANK", "1").env("WORLD_SIZE", "2");
    let (out, err) = texts(&plan.output().unwrap());
    assert!(out.is_empty() && err.contains("unset RANK and WORLD_SIZE"), "{out}\n{err}");
    plan.env("TORCHELASTIC_RUN_ID", "1");
    let (out, err) = texts(&plan.output().unwrap());
    assert!(out.is_empty() && err.is_empty(), "{out}\n{err}");
    // Variables that are set by halves matter to training alone.
    let (out, _) = texts(&plan.env_remove("RANK").output().unwrap());
    assert!(!out.is_empty());
}
