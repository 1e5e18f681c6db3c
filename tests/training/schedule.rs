//! Learning rates over a run are those of transformers.

use crate::common;
use ln_tuning::{Decay, Schedule};

#[test]
fn factors_are_those_of_transformers_at_every_step() {
    let text = common::run_python("schedules.py", &[]);
    let rows: Vec<(String, u64, u64, Vec<f64>)> = serde_json::from_str(&text).unwrap();
    assert_eq!(rows.len(), 12);
    for (name, warmup, total, factors) in rows {
        let decay = match name.as_str() {
            "constant_with_warmup" => Decay::Constant,
            "linear" => Decay::Linear,
            _ => Decay::Cosine,
        };
        let schedule = Schedule::new(decay, warmup, total);
        assert_eq!(factors.len() as u64, total + 1);
        let end = if decay == Decay::Constant { 1. } else { 0. };
        assert_eq!(schedule.factor(2 * total + 1), end, "{name}");
        for (step, expected) in factors.into_iter().enumerate() {
            let found = schedule.factor(step as u64);
            assert!(
                (found - expected).abs() < 1e-12,
                "{name} {warmup}/{total}, step {step}: {found}, {expected}"
            );
        }
    }
}
