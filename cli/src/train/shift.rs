//! The loss over the scale of what an adapter learned: base + λ · (tuned − base) (arXiv 2508.07577).

use std::path::Path;

use anyhow::Result;
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{LnTuningModel, LoadOptions, SavedAdapter, DEFAULT_ADAPTER};
use serde_json::{json, Value};
use tch::nn::VarStore;

use super::evaluation::evaluate;
use super::ranks::Ranks;
use super::settings::Settings;
use super::task::{Scores, Task};
use crate::chart::{panel, picture, Axis};

/// 0 is the base, 1 the adapter.
const SCALES: [f64; 7] = [0., 0.25, 0.5, 0.75, 1., 1.25, 1.5];

/// The scores of each scale.
pub struct Shift {
    pub rows: Vec<(f64, Scores)>,
    /// Keys of tensors that are not scaled, since the base lacks them: a new head.
    pub whole: Vec<String>,
}

/// An adapter on disk, and the files as they were asked for.
pub struct Asked<'a> {
    pub adapter: &'a Path,
    pub saved: &'a SavedAdapter,
    pub load: &'a LoadOptions,
}

impl Shift {
    /// Evaluates the task's rows with the adapter on the variables of the model, at each scale.
    pub fn of<T: Task>(
        task: &T,
        vs: &VarStore,
        asked: &Asked,
        settings: &Settings,
    ) -> Result<Self> {
        let (mut tuned, _) =
            LnTuningModel::from_pretrained_with(vs, asked.adapter, DEFAULT_ADAPTER, asked.load)?;
        let rows = task.lengths().len();
        let mut shift = Shift { rows: Vec::new(), whole: Vec::new() };
        for scale in SCALES {
            let (scaled, whole) = asked.saved.scaled(ModelFiles::open(&settings.model)?, scale)?;
            tuned.load_state_dict(DEFAULT_ADAPTER, &scaled.tensors, &LoadOptions::default())?;
            shift.rows.push((scale, evaluate(task, rows, settings, &Ranks::alone())?));
            shift.whole = whole;
        }
        Ok(shift)
    }

    /// The scale of the lowest loss.
    pub fn lowest(&self) -> Option<f64> {
        let finite = self.rows.iter().filter(|(_, scores)| scores[0].1.is_finite());
        Some(finite.min_by(|a, b| a.1[0].1.total_cmp(&b.1[0].1))?.0)
    }

    pub fn table(&self) -> String {
        let Some((_, first)) = self.rows.first() else { return String::new() };
        let names: String = first.iter().map(|(name, _)| format!(" {name:>12}")).collect();
        let mut text = format!("{:>6}{names}\n", "scale");
        for (scale, scores) in &self.rows {
            let numbers: String =
                scores.iter().map(|(_, value)| format!(" {value:>12.4}")).collect();
            let words = match *scale {
                0. => "  the base",
                1. => "  the adapter",
                _ => "",
            };
            let lowest = if self.lowest() == Some(*scale) { "  lowest" } else { "" };
            text += &format!("{scale:>6.2}{numbers}{words}{lowest}\n");
        }
        for key in &self.whole {
            text += &format!("not scaled: {key} (not in the base)\n");
        }
        text
    }

    pub fn to_json(&self) -> Value {
        let row = |(scale, scores): &(f64, Scores)| {
            let mut row = json!({"scale": scale});
            scores.iter().for_each(|(name, value)| row[*name] = json!(value));
            row
        };
        json!({
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "lowest": self.lowest(),
            "unscaled": self.whole,
        })
    }

    /// A picture of the loss, as SVG.
    pub fn picture(&self) -> Result<Vec<u8>> {
        let axis = Axis { least: (0., 1.5), label: |scale| format!("{scale:.2}") };
        let points = self.rows.iter().map(|(scale, scores)| (*scale, scores[0].1));
        let lines = [("", points.filter(|point| point.1.is_finite()).collect())];
        picture((640, 400), (1, 1), |panels| {
            panel(&panels[0], "loss over the scale of the learned shift", &lines, &axis)
        })
    }
}
