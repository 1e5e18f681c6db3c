//! In f16 the loss scale is found while training, and the steps that it skips are told.

use std::fs;

use tch::Tensor;

use crate::program::Training;
use crate::training;

/// Takes the run back to its second step, with another loss scale.
fn back_with(training: &Training, scale: f64) {
    let checkpoints = training.path("out/checkpoints");
    for step in training.checkpoints("out").into_iter().filter(|step| *step != 2) {
        fs::remove_dir_all(checkpoints.join(format!("step-{step}"))).unwrap();
    }
    let file = checkpoints.join("step-2/optimizer.safetensors");
    let mut state = Tensor::read_safetensors(&file).unwrap();
    let saved = state.iter_mut().find(|(key, _)| key == "loss_scale").unwrap();
    saved.1 = Tensor::from(scale as f32);
    Tensor::write_safetensors(&state, file).unwrap();
}

#[test]
fn steps_that_the_loss_scale_skips_are_told_and_too_many_in_a_row_stop_the_run() {
    let settings = ["kind=f16", "max_steps=36", "save_interval=2", "keep_last=99"];
    let training = training().set(&settings);
    let printed = training.run(&[]);
    assert!(!printed.contains("skipped"), "{printed}");
    assert!(training.series("out", "skipped_steps").iter().all(|(_, skipped)| *skipped == 0.));

    back_with(&training, 2f64.powi(22));
    let printed = training.run(&[]);
    let skipped = training.series("out", "skipped_steps");
    let last = skipped.last().unwrap().1;
    assert!((2. ..20.).contains(&last), "{skipped:?}");
    assert!(printed.contains("step 3: skipped"), "{printed}");
    assert!(printed.contains(&format!("{last} of 36 steps were skipped")), "{printed}");
    let norms = training.series("out", "grad_norm");
    assert_eq!(norms.len() as f64, 36. - last, "skipped steps have no norm");

    back_with(&training, 2f64.powi(100));
    let error = training.refusal(&[]);
    assert!(error.contains("the last 30 steps were skipped") && error.contains("bf16"), "{error}");
}

#[test]
fn a_loss_scale_is_a_number_above_0_or_dynamic() {
    let training = training().set(&["max_steps=1"]);
    for (bad, found) in [("0", "'loss_scale' is 0"), ("-1", "is -1"), ("dynamics", "'dynamics'")] {
        let error = training.refusal(&[&format!("loss_scale={bad}")]);
        assert!(error.contains(found) && error.contains("or dynamic"), "{error}");
    }
    training.run(&["loss_scale=dynamic", "kind=f32"]);
    assert_eq!(training.series("out", "skipped_steps"), [(1, 0.)]);
}
