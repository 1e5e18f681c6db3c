//! `--dry-run`: the rest of what a run would do, after the preflight.

use anyhow::Result;
use ln_tuning::TrainableParameters;
use serde::Serialize;
use serde_json::{json, Value};

use super::example::Example;
use super::preflight::Largest;

#[derive(Serialize)]
pub struct Steps {
    pub total: u64,
    /// Steps in an epoch.
    pub epoch: u64,
    /// Steps of the checkpoint that the run would resume from.
    pub done: u64,
}

pub fn show(
    parameters: TrainableParameters,
    lines: Vec<String>,
    largest: Largest,
    steps: Steps,
    example: Example,
    json: bool,
) -> Result<()> {
    if json {
        let tensor = |(name, shape): &(String, Vec<i64>)| json!({"name": name, "shape": shape});
        let tensors: Vec<Value> = largest.tensors.iter().map(tensor).collect();
        let report = json!({
            "trainable": parameters.trainable,
            "total": parameters.total,
            "percent": parameters.percent(),
            "tensors": tensors,
            "steps": steps,
            "largest_batch": largest,
            "report": lines,
            "example": example,
        });
        println!("{report:#}");
        return Ok(());
    }
    println!("\nThese {} tensors train, all others stay as they are:", largest.tensors.len());
    let width = largest.tensors.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, shape) in &largest.tensors {
        println!("  {name:<width$} {shape:?}");
    }
    println!("\n{example}\n\nThis was a dry run: nothing was written.");
    Ok(())
}
