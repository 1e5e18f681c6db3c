//! The program on the counting runtime of `tests/cuda`: the second of two devices, without a GPU.

use crate::counting::{Counts, Gpu};
use crate::program::{texts, Training};
use crate::training;

/// A run on `cuda:1`: what it printed. It writes no warning, and takes nothing of the first device.
fn run(training: &Training) -> Option<String> {
    let mut command = training.command(&["device=cuda:1"]);
    let report = training.path("counts");
    command.env("COUNTING_REPORT", &report);
    // The preflight looks for gradients that are not zero.
    let gpu = Gpu { devices: 2, fill: Some(0x3c), ..Gpu::default() };
    if !gpu.give_to(&mut command) {
        return None;
    }
    let output = command.output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{out}\n{err}");
    assert_eq!(err, "", "standard error");
    let counts = Counts::read(&report);
    assert_eq!(counts.devices[0].peak, 0, "memory of cuda:0");
    assert!(counts.devices[1].peak > 0 && counts.launches > 100);
    Some(out)
}

#[test]
fn a_run_on_the_second_device_resumes_there_says_nothing_and_leaves_the_first_alone() {
    for kind in ["bf16", "f16", "f32"] {
        let settings = ["max_steps=4", "save_interval=2", "data.eval_fraction=0.2"];
        let training = training().set(&settings).set(&[&format!("kind={kind}")]);
        let Some(printed) = run(&training) else { return };
        assert!(printed.contains("on Cuda(1)"), "{printed}");
        assert_eq!(training.checkpoints("out"), [2, 4]);

        std::fs::remove_dir_all(training.path("out/checkpoints/step-4")).unwrap();
        let printed = run(&training).unwrap();
        assert!(printed.contains("resuming after step 2"), "{printed}");
        assert_eq!(training.checkpoints("out"), [2, 4]);
    }
}
