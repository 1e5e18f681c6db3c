//! Nothing is lost, whenever a run ends.

use std::process::Child;
use std::time::{Duration, Instant};

use crate::program::Training;
use crate::training;

const STEPS: &str = "max_steps=40";

/// The results of a run.
#[derive(PartialEq)]
struct Left {
    adapter: Vec<u8>,
    moments: Vec<u8>,
    losses: Vec<(u64, f64)>,
    evaluations: Vec<(u64, f64)>,
}

fn result(training: &Training, out: &str) -> Left {
    let bytes = |name: &str| std::fs::read(training.path(out).join(name)).unwrap();
    Left {
        adapter: bytes("adapter/adapter_model.safetensors"),
        moments: bytes("checkpoints/step-40/optimizer.safetensors"),
        losses: training.series(out, "loss"),
        evaluations: training.series(out, "eval_loss"),
    }
}

fn settings() -> Training {
    let settings = [STEPS, "data.eval_fraction=0.2", "eval_interval=7", "save_interval=1"];
    training().set(&settings).set(&["accumulation=2", "deterministic=true"])
}

fn start(training: &Training, more: &[&str]) -> Child {
    training.command(more).spawn().unwrap()
}

fn lines(training: &Training) -> usize {
    let text = std::fs::read_to_string(training.path("out/metrics.jsonl")).unwrap_or_default();
    text.lines().count()
}

/// A small generator of its own, so that the instants are the same in each run of the test.
pub fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 33
}

#[test]
fn a_run_killed_at_20_random_instants_ends_as_one_that_was_not() {
    let training = settings();
    training.run(&["out=whole"]);
    let whole = result(&training, "whole");
    let mut state = 7;
    let mut kills = 0;
    // A process takes seconds to start on a GPU.
    let enough = if std::env::var_os("LN_TUNING_TEST_DEVICE").is_some() { 6 } else { 20 };
    while kills < enough {
        let mut child = start(&training, &[]);
        // In the first instants of a run, while it loads, or among its steps, while it saves.
        let before = lines(&training);
        if kills % 5 != 0 {
            let begun = Instant::now();
            while lines(&training) <= before && begun.elapsed() < Duration::from_secs(60) {
                if child.try_wait().unwrap().is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        std::thread::sleep(Duration::from_micros(random(&mut state) % 20_000));
        let ended = child.try_wait().unwrap().is_some();
        // SIGKILL.
        let _ = child.kill();
        let _ = child.wait();
        kills += 1;
        if ended {
            // Begin again from an earlier state: a finished run has nothing left to be killed in.
            let steps = training.checkpoints("out");
            for step in &steps[1..] {
                let dir = training.path(&format!("out/checkpoints/step-{step}"));
                std::fs::remove_dir_all(dir).unwrap();
            }
        }
    }
    training.run(&[]);
    let ours = result(&training, "out");
    assert_eq!(ours.losses, whole.losses);
    assert_eq!(ours.evaluations, whole.evaluations);
    assert!(ours.adapter == whole.adapter, "the adapters differ");
    assert!(ours.moments == whole.moments, "the moments differ");
    // Nothing half-made is left behind.
    let left = std::fs::read_dir(training.path("out/checkpoints")).unwrap();
    let mut left: Vec<_> =
        left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    let best = training.series("out", "eval_loss");
    let best = best.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    let mut expected = vec!["step-39".to_owned(), "step-40".to_owned()];
    if best < 39 {
        expected.push(format!("step-{best}"));
        expected.sort();
    }
    assert_eq!(left, expected);
}

#[test]
fn ctrl_c_finishes_the_step_saves_and_ends_well() {
    let training = settings().set(&["save_interval=1000"]);
    training.run(&["out=whole"]);
    let mut child = start(&training, &[]);
    let begun = Instant::now();
    while lines(&training) < 3 && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let id = child.id().to_string();
    let sent = std::process::Command::new("kill").args(["-INT", &id]).status().unwrap();
    assert!(sent.success());
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
    let step = *training.checkpoints("out").last().expect("a checkpoint");
    assert_eq!(training.series("out", "loss").last().unwrap().0, step);
    let printed = training.run(&[]);
    assert!(step == 40 || printed.contains(&format!("resuming after step {step}")), "{printed}");
    assert!(result(&training, "out") == result(&training, "whole"));
}

#[test]
fn old_checkpoints_go_and_the_best_is_kept() {
    // A rate this high makes everything worse after the first steps of the warm-up.
    let settings = ["max_steps=12", "data.eval_fraction=0.2", "eval_interval=1", "save_interval=1"];
    let training =
        training().set(&settings).set(&["optimizer.lr=100", "schedule.warmup_steps=2000"]);
    let printed = training.run(&["keep_last=3", "clip_norm=null"]);
    let evaluations = training.series("out", "eval_loss");
    let best = evaluations.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    let mut expected = vec![10, 11, 12];
    if best < 10 {
        expected.insert(0, best);
    }
    assert_eq!(training.checkpoints("out"), expected);
    assert!(printed.contains(&format!("step-{best}")), "{printed}");
    assert!(best < 10, "the test wants a run that gets worse: {evaluations:?}");
}

#[test]
fn a_run_is_not_gone_on_with_on_other_settings_or_data() {
    let training = settings();
    training.run(&["max_steps=3"]);
    let error = training.refusal(&["max_steps=3", "optimizer.lr=0.5"]);
    assert!(error.contains("'optimizer.lr': 0.02, and it is 0.5 now"), "{error}");
    let error = training.refusal(&["max_steps=3", "resume=never"]);
    assert!(error.contains("'resume' is never"), "{error}");
    // As many letters, another text.
    let text = training.read("train.txt").replace("lazy", "idle");
    training.write("train.txt", &text);
    let error = training.refusal(&["max_steps=3"]);
    assert!(error.contains("other data"), "{error}");
}

#[test]
fn a_loss_that_is_not_finite_stops_with_the_lines_and_the_last_good_checkpoint() {
    let settings = ["max_steps=30", "save_interval=1", "data.shuffle=false", "data.packing=false"];
    let training = training().set(&settings).set(&["optimizer.lr=1e30", "schedule.warmup_steps=3"]);
    let error = training.refusal(&["clip_norm=null", "optimizer.weight_decay=1e9"]);
    for part in ["step ", "train.txt:", "the last good checkpoint is 'out/checkpoints/step-"] {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
    // No loss sees the last update.
    let last =
        ["out=last", "max_steps=1", "schedule.warmup_steps=0", "optimizer.weight_decay=1e300"];
    let error = training.refusal(&last);
    for part in ["step 1: 'base_model.", "is NaN or infinite", "there is no checkpoint yet"] {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
    assert!(!training.path("last/adapter").exists() && !training.path("last/checkpoints").exists());
}
