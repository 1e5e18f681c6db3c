//! The bundle for a GPU box: everything in it is found and runs to its end where there is no GPU.
//!
//! `make gpu-bundle` runs the dry run on what it has made (LN_TUNING_BUNDLE); otherwise a bundle of the programs that
//! are built with the tests takes its place.

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/cuda/counting/mod.rs"]
mod counting;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use counting::Gpu;
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn words(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{out}{err}")
}

/// The folder of the bundle.
fn bundle(dir: &Path) -> PathBuf {
    if let Some(made) = std::env::var_os("LN_TUNING_BUNDLE") {
        return made.into();
    }
    let out = dir.join("bundle");
    let mut command = common::python();
    command.arg(common::root().join("scripts/gpu_bundle")).arg("--out").arg(&out);
    command.args(["--profile", "dev", "--no-wheels"]);
    // Benchmarks are not built with the tests.
    command.args(["--without", "train_vs_peft", "mixed_batches", "loading_vs_transformers"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", words(&output));
    out
}

#[test]
fn every_step_of_the_bundle_reaches_its_end_without_a_gpu() {
    let dir = tempfile::tempdir().unwrap();
    let python = common::python().get_program().to_owned();
    // The counting runtime is made for the libtorch of this process: without a call of it there is none.
    tch::manual_seed(0);
    let Some(_) = Gpu::default().command(Path::new(&python)) else { return };
    let (bundle, out) = (bundle(dir.path()), dir.path().join("out"));
    // Tests that the suite runs by itself with these programs are left to the bundle that was made.
    let short = [
        "device",
        "check-models",
        "fine-tunings",
        "check-shape",
        "fused",
        "generation",
        "two-ranks",
    ];
    let made = std::env::var_os("LN_TUNING_BUNDLE").is_some();
    let all: [(&str, &[&str]); 2] = [("A", &short), ("B", &["profile", "graph"])];
    for (phase, only) in all {
        let mut run = Gpu::default().command(Path::new(&python)).unwrap();
        // On a GPU box, tests start a Python of their own.
        run.env_remove("LN_TUNING_PYTHON_SERVER");
        run.arg(bundle.join("run.py")).args(["--phase", phase, "--dry-run", "--own-packages"]);
        run.arg("--out").arg(&out).args(["--minutes", "9"]);
        if !made {
            run.arg("--only").args(only);
        }
        let output = run.output().unwrap();
        let report = std::fs::read_to_string(out.join("report.md")).unwrap_or_default();
        assert!(output.status.success(), "{}{report}", words(&output));
    }
    let report = json(&out.join("report.json"));
    let steps = report["steps"].as_object().unwrap();
    assert!(steps.values().all(|step| step["status"] == "passed"), "{report:#}");
    let names: BTreeSet<&str> = steps.keys().map(String::as_str).collect();
    let expected: BTreeSet<&str> = short.into_iter().chain(["profile", "graph"]).collect();
    let full =
        ["kill", "loading", "mixed", "train-1x128", "train-4x768", "train-packed", "train-varying"];
    assert!(
        names.is_superset(&expected) && (!made || names.is_superset(&full.into())),
        "{names:?}"
    );
    assert!(report["machine"]["devices"] == 1, "{report:#}");
    let text = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(text.starts_with("# Checks and measurements: dry run"), "{text}");
    assert!(text.contains("No figure below is a measurement."), "{text}");
    assert!(text.contains("2 models, 12 results, 0 missing"), "{text}");
    // In a Python, which keeps libtorch for itself, the library finds its functions too.
    let profile = std::fs::read_to_string(out.join("profile.log")).unwrap();
    assert!(profile.contains("| ours:") && !profile.contains("warning"), "{profile}");
    // Both sides of the mixed batches, in lines without a failure.
    for line in ["| ours | 6 | 3 |", "| PEFT, LoRA of q, v | 6 | 3 |", "of all-linear | 6 | 3 |"] {
        assert!(!made || text.contains(line), "'{line}' is not in {text}");
    }
}

/// Steps that succeed, fail, and never end.
const STEPS: &str = r#"
import sys
sys.path.insert(0, "REAL")
from real_steps import Places, Step

def phase(places, options):
    shell = lambda text: ["bash", "-c", text]
    return [
        Step("good", "It succeeds.", 20, shell("echo '| a | b |'; echo '|---|---|'; echo good >> ../../ran")),
        Step("bad", "It fails.", 20, shell("echo words; exit 3")),
        Step("absent", "It is not there.", 20, ["./no-such-program"]),
        Step("endless", "It does not end.", 1, shell("sleep 1000 & echo $! > ../../child; wait")),
        Step("last", "It comes last.", 20, shell("echo last >> ../../ran; [ -e ../../wait ] && sleep 60; true")),
    ]

PHASES = {"A": phase, "B": phase}
"#;

/// A bundle of these steps, without programs and wheels.
fn small_bundle(dir: &Path) -> PathBuf {
    let bundle = dir.join("small");
    std::fs::create_dir(&bundle).unwrap();
    let gpu = common::root().join("gpu");
    for (from, to) in
        [("run.py", "run.py"), ("report.py", "report.py"), ("steps.py", "real_steps.py")]
    {
        std::fs::copy(gpu.join(from), bundle.join(to)).unwrap();
    }
    std::fs::write(bundle.join("steps.py"), STEPS.replace("REAL", bundle.to_str().unwrap()))
        .unwrap();
    let tar = Command::new("tar")
        .args(["-cJf", "programs.tar.xz", "-T", "/dev/null"])
        .current_dir(&bundle)
        .status();
    assert!(tar.unwrap().success());
    let manifest = serde_json::json!({
        "commit": "abc", "torch": "2.11.0", "python": "3.12", "glibc": "2.17", "glibcxx": "3.4.1", "files": {},
    });
    std::fs::write(bundle.join("manifest.json"), manifest.to_string()).unwrap();
    bundle
}

fn run(bundle: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = common::python();
    command
        .arg(bundle.join("run.py"))
        .args(["--phase", "A", "--own-packages", "--cpu", "--out"])
        .arg(out)
        .args(more);
    command
}

fn statuses(out: &Path) -> Vec<String> {
    let report = json(&out.join("report.json"));
    let steps = report["steps"].as_object().unwrap();
    steps
        .iter()
        .map(|(name, step)| format!("{name}: {}", step["status"].as_str().unwrap()))
        .collect()
}

#[test]
fn a_step_that_fails_or_hangs_stops_no_other_and_a_run_that_is_killed_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, out) = (small_bundle(dir.path()), dir.path().join("out"));
    let ran = || std::fs::read_to_string(out.join("ran")).unwrap_or_default();
    // Killed in the last step.
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("wait"), "").unwrap();
    let mut child = run(&bundle, &out, &[]).spawn().unwrap();
    while !ran().contains("last") {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before =
        ["good: passed", "bad: failed", "absent: failed", "endless: timed out", "last: started"];
    assert_eq!(statuses(&out), before);
    // The process that the step without an end had started has ended with it.
    let child = std::fs::read_to_string(out.join("child")).unwrap();
    assert!(!Path::new("/proc").join(child.trim()).join("exe").exists());
    // Those that have ended are not run again.
    std::fs::remove_file(out.join("wait")).unwrap();
    let output = run(&bundle, &out, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    assert_eq!(ran(), "good\nlast\nlast\n");
    assert_eq!(statuses(&out)[4], "last: passed");
    let text = std::fs::read_to_string(out.join("report.md")).unwrap();
    for part in
        ["| good | A | passed |", "| a | b |\n|---|---|", "words", "| endless | A | timed out |"]
    {
        assert!(text.contains(part), "'{part}' is not in {text}");
    }
    let output = run(&bundle, &out, &["--only", "good", "--again"]).output().unwrap();
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(ran(), "good\nlast\nlast\ngood\n");

    // A fault is told before any step.
    let refusal = |command: &mut Command, parts: &[&str]| {
        let output = command.output().unwrap();
        let text = words(&output);
        assert!(output.status.code() == Some(1) && text.starts_with("error: "), "{text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} are not in {text}");
    };
    refusal(&mut run(&bundle, &out, &["--only", "goood"]), &["no step goood", "good, bad"]);
    let mut wrong = json(&bundle.join("manifest.json"));
    let mut with = |key: &str, value: Value, parts: &[&str]| {
        let right = std::mem::replace(&mut wrong[key], value);
        std::fs::write(bundle.join("manifest.json"), wrong.to_string()).unwrap();
        refusal(&mut run(&bundle, &out, &[]), parts);
        wrong[key] = right;
    };
    with("commit", "def".into(), &["another run", "abc, now def", "--out"]);
    with("glibc", "9.1".into(), &["the programs need 9.1"]);
    with("torch", "2.99.0".into(), &["built for 2.99.0"]);
    with(
        "files",
        serde_json::json!({"wheels/x.whl": [1, ""]}),
        &["x.whl' is missing", "whole folder"],
    );
    with("files", serde_json::json!({"steps.py": [1, ""]}), &["steps.py' is not as it was made"]);
}
