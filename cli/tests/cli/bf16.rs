//! The comparison with PEFT in bf16 that the README shows, in short.

use crate::common::{root, run_python};
use crate::program::text;

#[test]
fn in_bf16_our_weights_move_and_those_of_peft_do_not() {
    let out = tempfile::tempdir().unwrap();
    let script = root().join("cli/comparisons/bf16_vs_peft.py");
    let program = crate::program::path().into_string().unwrap();
    let text = run_python(
        text(&script),
        &[
            &[
                "--binary",
                &program,
                "--out",
                text(out.path()),
                "--steps",
                "160",
                "--base-steps",
                "5",
            ][..],
            &["--real-steps", "0", "--threads", "1", "--eval-rows", "8", "--rows", "64"],
        ]
        .concat(),
    );
    assert!(text.contains("weights that moved: ours 1152 of 1152, PEFT 0 of 1152"), "{text}");
    let report = std::fs::read_to_string(out.path().join("bf16.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let curve = |name: &str| -> Vec<(u64, f64)> {
        serde_json::from_value(report["near_one"][name]["curve"].clone()).unwrap()
    };
    let (ours, theirs) = (curve("ours"), curve("peft"));
    assert_eq!((ours.len(), theirs.len()), (20, 20));
    assert!(theirs.iter().all(|point| point.1 == theirs[0].1), "PEFT's loss changes: {theirs:?}");
    // It starts where PEFT starts: the same model and rows.
    let apart = (ours[0].1 - theirs[0].1).abs();
    assert!(apart < 5e-3, "{ours:?} {theirs:?}");
    // Steps add up until they reach the next number of bf16, after about twenty of them; from there on the loss falls,
    // further than the two are apart.
    let highest = ours[15..].iter().map(|point| point.1).fold(f64::MIN, f64::max);
    let lowest = ours[..3].iter().map(|point| point.1).fold(f64::MAX, f64::min);
    assert!(lowest - highest > 2. * apart && lowest - highest > 3e-4, "{ours:?} {theirs:?}");
    let svg = std::fs::read_to_string(out.path().join("bf16.svg")).unwrap();
    assert!(svg.matches("<polyline").count() == 2 && svg.contains("ln-tuning, f32 masters"));
}
