//! The differences of weights as a heat map.

use std::collections::BTreeSet;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::adapter::diff::{AdapterDiff, TensorDiff};
use crate::error::{refusal, refuse, Result};
use crate::names::natural::{natural_cmp, Natural};

const CELL: (i32, i32) = (22, 22);
const TOP: i32 = 64;
const BOTTOM: i32 = 40;
const FONT: &str = "sans-serif";

impl AdapterDiff {
    /// An SVG picture: a row per kind of tensor (`layers.*.input_layernorm.weight`), a column per depth. The colour of a
    /// cell shows the [`rms`](TensorDiff::rms) of its tensor, from white (0) to dark (the largest).
    ///
    /// # Errors
    /// `InvalidArgument` if there is nothing to draw.
    pub fn heat_map(&self) -> Result<String> {
        let cells: Vec<(String, Option<String>, f64)> =
            self.tensors.iter().map(|t| (row(t), depth(t), t.rms())).collect();
        if cells.is_empty() {
            refuse!(InvalidArgument, "there is no floating-point tensor to draw a heat map of");
        }
        let mut rows: Vec<&String> = cells.iter().map(|(row, _, _)| row).collect();
        rows.sort_by(|a, b| natural_cmp(a, b));
        rows.dedup();
        let depths: BTreeSet<Natural> =
            cells.iter().filter_map(|(_, depth, _)| depth.clone().map(Natural)).collect();
        let depths: Vec<String> = depths.into_iter().map(|depth| depth.0).collect();
        // Tensors outside the blocks have a column of their own at the end.
        let alone = cells.iter().any(|(_, depth, _)| depth.is_none());
        let columns = depths.len() + usize::from(alone);
        let most = cells.iter().map(|(_, _, rms)| *rms).fold(0., f64::max);

        let left = 24 + 7 * rows.iter().map(|row| row.len() as i32).max().unwrap_or(0);
        let width = (left + CELL.0 * columns as i32 + 24).max(520);
        let height = TOP + CELL.1 * rows.len() as i32 + BOTTOM;
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, (width as u32, height as u32));
        let draw = |area: DrawingArea<SVGBackend, plotters::coord::Shift>| {
            area.fill(&WHITE)?;
            let against = self.against.as_deref().map_or("the base".into(), |a| format!("'{a}'"));
            let title = format!("Difference of '{}' from {against} (rms)", self.adapter);
            let small = (FONT, 12).into_font().color(&BLACK);
            area.draw_text(&title, &(FONT, 16).into_font().color(&BLACK), (12, 10))?;
            let scale = format!("white: 0, darkest: {most:.2e}; across: depth");
            area.draw_text(&scale, &small, (12, 34))?;
            let named = small.pos(Pos::new(HPos::Right, VPos::Center));
            for (index, name) in rows.iter().enumerate() {
                let y = TOP + CELL.1 * index as i32 + CELL.1 / 2;
                area.draw_text(name, &named, (left - 8, y))?;
            }
            let below = small.pos(Pos::new(HPos::Center, VPos::Top));
            let bottom = TOP + CELL.1 * rows.len() as i32 + 6;
            // All labels if they fit, else every fifth or tenth.
            let every = [1, 5, 10, 20].into_iter().find(|n| depths.len() / n <= 40).unwrap_or(50);
            for (index, depth) in depths.iter().enumerate().filter(|(i, _)| i % every == 0) {
                let x = left + CELL.0 * index as i32 + CELL.0 / 2;
                area.draw_text(depth, &below, (x, bottom))?;
            }
            for (row, depth, rms) in &cells {
                let y = rows.iter().position(|name| *name == row).unwrap_or(0) as i32;
                let column = depth.as_ref().and_then(|d| depths.iter().position(|x| x == d));
                let x = column.unwrap_or(depths.len()) as i32;
                let corner = (left + CELL.0 * x, TOP + CELL.1 * y);
                let shade = if most > 0. { rms / most } else { 0. };
                let cell = [corner, (corner.0 + CELL.0 - 1, corner.1 + CELL.1 - 1)];
                area.draw(&Rectangle::new(cell, colour(shade).filled()))?;
                area.draw(&Rectangle::new(cell, RGBColor(220, 220, 220)))?;
            }
            area.present()
        };
        draw(area.into_drawing_area())
            .map_err(|e| refusal!(InvalidArgument, "the heat map cannot be drawn: {e}"))?;
        Ok(svg)
    }
}

/// The name with its first number replaced by a star.
fn row(tensor: &TensorDiff) -> String {
    let mut starred = false;
    let segments = tensor.module.split('.').map(|segment| {
        if !starred && is_number(segment) {
            starred = true;
            return "*";
        }
        segment
    });
    segments.chain([tensor.tensor.as_str()]).collect::<Vec<_>>().join(".")
}

/// The first number in the name.
fn depth(tensor: &TensorDiff) -> Option<String> {
    tensor.module.split('.').find(|segment| is_number(segment)).map(str::to_owned)
}

fn is_number(segment: &str) -> bool {
    !segment.is_empty() && segment.chars().all(|c| c.is_ascii_digit())
}

/// The colour for 0 to 1: from white over orange to dark red.
fn colour(shade: f64) -> RGBColor {
    let stops = [(255., 255., 255.), (253., 187., 110.), (215., 60., 40.), (90., 0., 30.)];
    let at = shade.clamp(0., 1.) * 3.;
    let low = (at.floor() as usize).min(2);
    let mix = |a: f64, b: f64| (a + (b - a) * (at - low as f64)).round() as u8;
    let (a, b) = (stops[low], stops[low + 1]);
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}
