//! The program on the counting runtime of `tests/cuda`: the second of two devices, without a GPU.

use std::process::Output;

use crate::counting::{Counts, Gpu};
use crate::program::{texts, Training};
use crate::training;

/// A run on `cuda:1`, and what it did with the devices.
fn run(training: &Training, more: &[&str]) -> Option<(Output, Counts)> {
    let mut command = training.command(&[more, &["device=cuda:1"]].concat());
    let report = training.path("counts");
    command.env("COUNTING_REPORT", &report);
    let gpu = Gpu { devices: 2, zeros: true, ..Gpu::default() };
    if !gpu.give_to(&mut command) {
        return None;
    }
    let output = command.output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{out}\n{err}");
    Some((output, Counts::read(&report)))
}

#[test]
fn a_run_on_the_second_device_resumes_there_says_nothing_and_leaves_the_first_alone() {
    for kind in ["bf16", "f16", "f32"] {
        let kind = format!("kind={kind}");
        let training = training().set(&[&kind, "checkpoint_interval=2", "data.eval_fraction=0.2"]);
        let Some((output, counts)) = run(&training, &["max_steps=2"]) else { return };
        assert!(texts(&output).0.contains("on Cuda(1)"), "{}", texts(&output).0);
        assert_eq!(training.checkpoints("out"), [2]);
        assert_eq!(counts.devices[0].peak, 0, "memory of cuda:0");
        assert!(counts.devices[1].peak > 0 && counts.launches > 100);

        let (output, counts) = run(&training, &["max_steps=4", "eval_interval=2"]).unwrap();
        let (out, err) = texts(&output);
        assert!(out.contains("resuming after step 2 of 4"), "{out}");
        assert!(!err.contains("arning"), "{err}");
        assert_eq!(training.checkpoints("out"), [2, 4]);
        assert_eq!(counts.devices[0].peak, 0, "memory of cuda:0");
    }
}
