//! A folder of results is of one run at a time.

use std::io::{BufRead, BufReader};
use std::process::{Child, Output};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::program::{texts, Training};
use crate::training;

fn start(training: &Training, set: &[&str], arguments: &[&str], launch: Option<&str>) -> Child {
    let mut command = training.command(set);
    command.args(arguments);
    if let Some(launch) = launch {
        command.env("TORCHELASTIC_RUN_ID", launch);
    }
    command.spawn().unwrap()
}

/// Waits for more lines of metrics than so many.
fn wait(training: &Training, child: &mut Child, lines: usize) {
    let begun = Instant::now();
    while count(training) <= lines {
        assert!(child.try_wait().unwrap().is_none(), "the run has ended");
        assert!(begun.elapsed() < Duration::from_secs(120), "nothing happens");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn count(training: &Training) -> usize {
    let text = std::fs::read_to_string(training.path("out/metrics.jsonl"));
    text.unwrap_or_default().lines().count()
}

/// Asks a run for an end after the present step.
fn end(child: Child) -> Output {
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success() && out.contains("stopped after step"), "{out}\n{err}");
    output
}

#[test]
fn a_second_run_into_a_folder_is_refused_at_once_and_harms_nothing_until_the_first_is_gone() {
    let training =
        training().set(&["max_steps=1000000", "save_interval=1", "schedule.name=constant"]);
    let mut first = start(&training, &[], &[], None);
    wait(&training, &mut first, 1);
    let tasks = format!("tasks={}", json!([{"name": "a"}, {"name": "out"}]));
    let stages = "stages=[{max_steps: 1}, {recipe: layernorm}]";
    let others: Vec<(Child, Instant)> = [
        (&[][..], &[][..]),
        (&[], &["--find-lr"]),
        (&["seed=9"], &[]),
        (&[], &["--sweep", "optimizer.lr=1e-3,2e-3"]),
        (&[stages], &[]),
        (&["out=.", &tasks], &[]),
    ]
    .into_iter()
    .map(|(set, arguments)| (start(&training, set, arguments, Some("other")), Instant::now()))
    .collect();
    let shown = start(&training, &[], &["--dry-run"], None);
    for (other, begun) in others {
        let output = other.wait_with_output().unwrap();
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{out}\n{err}");
        let pid = format!("process {} on this machine", first.id());
        for words in [&pid, "out'", ", since 2", &format!("kill {}", first.id()), "another 'out'"] {
            assert!(err.contains(words), "'{words}' is not in: {err}");
        }
        // A second alone; here six begin beside a run.
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
    let (out, err) = texts(&shown.wait_with_output().unwrap());
    assert!(out.contains("This was a dry run"), "{out}\n{err}");
    assert!(!training.path("a").exists() && !training.path("out/runs").exists());
    let lines = count(&training);
    wait(&training, &mut first, lines);

    // SIGKILL: the file stays, and the lock does not.
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(training.path("out/.lock").exists());
    let lines = count(&training);
    let mut second = start(&training, &[], &[], Some("same"));
    wait(&training, &mut second, lines);
    // The next attempt of a launcher's run waits for the process of the one before.
    let mut third = start(&training, &[], &[], Some("same"));
    let mut lines_of_third = BufReader::new(third.stderr.take().unwrap()).lines();
    let said = lines_of_third.next().unwrap().unwrap();
    assert!(said.contains("of an attempt before still has 'out'"), "{said}");
    let (out, _) = texts(&end(second));
    assert!(!out.contains("\n1000000 steps"), "it began anew: {out}");
    let lines = count(&training);
    wait(&training, &mut third, lines);
    let (out, _) = texts(&end(third));
    assert!(out.contains("resuming after step"), "{out}");
    assert!(!training.path("out/.lock").exists());
}
