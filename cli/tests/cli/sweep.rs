//! Several runs at once are, each, what it would be alone.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{texts, Training};
use crate::training;

fn settings() -> Training {
    training().set(&["max_steps=6", "data.eval_fraction=0.2", "eval_interval=3", "save_interval=2"])
}

/// The output of a sweep that succeeds.
fn swept(training: &Training, set: &[&str], arguments: &[&str]) -> String {
    let output = training.command(set).args(arguments).output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{out}\n{err}");
    out
}

fn bytes(training: &Training, name: &str) -> Vec<u8> {
    std::fs::read(training.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// All that a run leaves in a folder, and in its checkpoint of this step.
#[derive(PartialEq)]
struct Left {
    files: [Vec<u8>; 3],
    series: [Vec<(u64, f64)>; 4],
}

fn left(training: &Training, out: &str, step: u64) -> Left {
    let files = ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors"];
    let files = files.map(|file| bytes(training, &format!("{out}/checkpoints/step-{step}/{file}")));
    let series = ["loss", "grad_norm", "lr", "eval_loss"].map(|key| training.series(out, key));
    Left { files, series }
}

#[test]
fn each_run_of_a_sweep_ends_bit_for_bit_as_it_would_alone() {
    let training = settings();
    let sweep = ["--sweep", "optimizer.lr=1e-3,0.03", "--sweep", "seed=0,5", "--keep-all"];
    let exact = [&sweep[..], &["--exact"]].concat();
    let printed = swept(&training, &["out=sweep"], &exact);
    // Rows of several runs together: batches of other lengths, orders and rates.
    let shown = swept(&training, &["out=together", "checkpointing=all"], &sweep);
    assert!(shown.contains("go through the model together"), "{shown}");
    let mut scores = Vec::new();
    for (name, own) in [
        ("lr=0.001,seed=0", ["optimizer.lr=1e-3", "seed=0"]),
        ("lr=0.001,seed=5", ["optimizer.lr=1e-3", "seed=5"]),
        ("lr=0.03,seed=0", ["optimizer.lr=0.03", "seed=0"]),
        ("lr=0.03,seed=5", ["optimizer.lr=0.03", "seed=5"]),
    ] {
        let alone = format!("out={name}");
        training.run(&[alone.as_str(), own[0], own[1]]);
        let run = format!("sweep/runs/{name}");
        assert!(left(&training, &run, 6) == left(&training, name, 6), "{name}");
        let near = |key: &str| {
            let series = |out: &str| training.series(out, key);
            let pairs = series(&format!("together/runs/{name}")).into_iter().zip(series(name));
            pairs.map(|((_, ours), (_, alone))| (ours - alone).abs() / alone).fold(0., f64::max)
        };
        assert!(near("loss") < 1e-5 && near("eval_loss") < 1e-5, "{name}: {}", near("loss"));
        assert!(near("grad_norm") < 1e-3, "{name}: {}", near("grad_norm"));
        let adapter =
            |out: &str| bytes(&training, &format!("{out}/adapter/adapter_model.safetensors"));
        assert!(adapter(&run) == adapter(name), "{name}");
        assert_eq!(training.checkpoints(&run), training.checkpoints(name));
        scores.push((training.series(name, "eval_loss").last().unwrap().1, name, adapter(name)));
        assert!(printed.contains(name), "{printed}");
        assert!(training.read("sweep/curves.svg").contains(name), "{name} is not in the picture");
    }
    let (_, best, adapter) = scores.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    assert!(bytes(&training, "sweep/adapter/adapter_model.safetensors") == adapter, "{best}");
    let record: Value = serde_json::from_str(&training.read("sweep/runs.json")).unwrap();
    assert_eq!(record["best"], best);
    assert!(printed.contains(&format!("the best is {best}, whose adapter is in 'sweep/adapter'")));
}

/// A sweep of rates and sizes in which some runs diverge and half of the others stop.
const HARD: [&str; 5] =
    ["--sweep", "optimizer.lr=1e30,0.02,1e-5", "--sweep", "batch_size=4,3", "--halving"];

#[test]
fn a_sweep_that_is_killed_goes_on_and_one_bad_run_harms_no_other() {
    let training =
        settings().set(&["max_steps=24", "clip_norm=null", "optimizer.weight_decay=0.1"]);
    let printed = swept(&training, &["out=whole"], &HARD);
    for words in [
        "lr=1e30,batch_size=4: stopped behind step",
        "the loss is",
        "lr=1e-5,batch_size=3: stopped behind step 3",
    ] {
        assert!(printed.contains(words), "'{words}' is not in: {printed}");
    }
    let start = || training.command(&[]).args(HARD).spawn().unwrap();
    let lines = || {
        let text =
            std::fs::read_to_string(training.path("out/runs/lr=0.02,batch_size=4/metrics.jsonl"));
        text.unwrap_or_default().lines().count()
    };
    for wait in [0, 3, 7] {
        let mut child = start();
        let (before, begun) = (lines(), Instant::now());
        while lines() <= before + wait && begun.elapsed() < Duration::from_secs(60) {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        // SIGKILL.
        let _ = child.kill();
        let _ = child.wait();
    }
    let printed = swept(&training, &[], &HARD);
    let read = |out: &str| training.read(&format!("{out}/runs.json"));
    assert_eq!(read("out"), read("whole").replace("'whole/", "'out/"), "{printed}");
    let record: Value = serde_json::from_str(&read("out")).unwrap();
    let mut whole = 0;
    for run in record["runs"].as_array().unwrap() {
        let folder = run["folder"].as_str().unwrap();
        let (ours, theirs) = (format!("out/runs/{folder}"), format!("whole/runs/{folder}"));
        assert_eq!(training.series(&ours, "loss"), training.series(&theirs, "loss"), "{folder}");
        if run["stopped"].is_null() {
            whole += 1;
            assert!(left(&training, &ours, 24) == left(&training, &theirs, 24), "{folder}");
        }
    }
    assert_eq!(whole, 1, "{record}");
    let adapter = |out: &str| bytes(&training, &format!("{out}/adapter/adapter_model.safetensors"));
    assert!(adapter("out") == adapter("whole"));
}

#[test]
fn bad_sweeps_are_refused_and_a_dry_run_shows_the_runs() {
    let training = settings();
    let refusal = |set: &[&str], arguments: &[&str]| {
        let output = training.command(set).args(arguments).output().unwrap();
        assert!(!output.status.success());
        texts(&output).1
    };
    for (arguments, words) in [
        (&["--sweep", "optimizer.lrs=1,2"][..], "is it 'optimizer.lr'?"),
        (&["--sweep", "optimzer.lr=1,2"], "is it 'optimizer'?"),
        (
            &["--sweep", "optimizer.lr=fast,1"],
            "lr=fast: in 'settings.yaml': 'optimizer.lr' is fast",
        ),
        (&["--sweep", "clip_norm=-1,1"], "'clip_norm' is -1"),
        (&["--sweep", "model=a,b"], "all runs of a sweep share one base"),
        (&["--sweep", "seed="], "has no values"),
        (&["--sweep", "max_steps=2,3", "--halving"], "compares runs at the same step"),
        (&["--exact"], "--exact is for several runs"),
        (&["--halving"], "--sweep"),
        (&["--sweep", "seed=1,2", "--find-lr"], "cannot be used with"),
    ] {
        let error = refusal(&[], arguments);
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
    let error = refusal(&["max_steps=null"], &["--sweep", "batch_size=2,3", "--halving"]);
    assert!(error.contains("different numbers of them: set 'max_steps'"), "{error}");
    let sweep = ["--sweep", "optimizer.lr=1e-3,2e-3,4e-3", "--dry-run"];
    let printed = swept(&training, &[], &sweep);
    for words in
        ["3 runs of 6 steps", "for 3 runs", "lr=0.002: in 'out/runs/lr=0.002'", "a dry run"]
    {
        assert!(printed.contains(words), "'{words}' is not in: {printed}");
    }
    let report = swept(&training, &[], &[&sweep[..], &["--json"]].concat());
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["runs"][1]["settings"]["optimizer"]["lr"], 0.002);
    assert_eq!(report["runs"].as_array().unwrap().len(), 3);
    assert!(!training.path("out").exists());

    // A folder is of one sweep, or of one run.
    swept(&training, &["max_steps=1"], &["--sweep", "seed=1,2"]);
    let error = refusal(&["max_steps=1"], &["--sweep", "seed=1,3"]);
    assert!(
        error.contains("holds other runs: seed=1; seed=2; and they are seed=1; seed=3"),
        "{error}"
    );
    let error = refusal(&["max_steps=2"], &["--sweep", "seed=1,2"]);
    assert!(error.contains("'max_steps': 1, and it is 2 now"), "{error}");
    let error = training.refusal(&["max_steps=1"]);
    assert!(error.contains("'out' holds several runs"), "{error}");
    training.run(&["max_steps=1", "out=alone"]);
    let error = refusal(&["max_steps=1", "out=alone"], &["--sweep", "seed=1,2"]);
    assert!(error.contains("'alone' holds a run that was alone"), "{error}");
}

#[test]
fn checkpoints_that_no_run_goes_on_from_are_kept_and_a_fault_in_one_run_changes_no_other() {
    let training = training().set(&["max_steps=2", "save_interval=1"]);
    let sweep = ["--sweep", "seed=[1, 2]"];
    let refusal = |set: &[&str]| {
        let output = training.command(set).args(sweep).output().unwrap();
        assert!(!output.status.success());
        texts(&output).1
    };
    // A run that was alone, in the folder that one of the sweep would have.
    training.run(&["out=lost/runs/seed=1", "seed=1"]);
    let error = refusal(&["out=lost"]);
    assert!(error.contains("'lost/runs/seed=1' holds checkpoints"), "{error}");
    assert!(error.contains("no 'lost/runs.json'"), "{error}");
    assert_eq!(training.checkpoints("lost/runs/seed=1"), [1, 2]);

    swept(&training, &[], &sweep);
    let error = refusal(&["resume=never"]);
    assert!(error.contains("'resume' is never"), "{error}");
    // Both would go on from the first step, which the second cannot.
    std::fs::remove_dir_all(training.path("out/runs/seed=2/checkpoints/step-2")).unwrap();
    training.write("out/runs/seed=2/checkpoints/step-1/state.json", "{}");
    let error = refusal(&[]);
    assert!(error.contains("seed=2") && error.contains("cannot be read"), "{error}");
    assert_eq!(training.checkpoints("out/runs/seed=1"), [1, 2]);
}
