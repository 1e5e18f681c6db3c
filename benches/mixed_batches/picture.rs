//! Growth over the number of adapters, as a picture.

use std::path::Path;

use anyhow::{anyhow, Result};
use plotters::prelude::*;

use crate::growth::Row;
use crate::Times;

const COLOURS: [RGBColor; 3] =
    [RGBColor(32, 96, 176), RGBColor(208, 112, 32), RGBColor(48, 144, 80)];

/// Two panels, prefill and decode: the speed of mixed rows over that of one adapter for all. PEFT's
/// LoRA is pale, with triangles.
pub fn draw(path: &Path, batches: &[i64], resident: &[usize], all: &[Row]) -> Result<()> {
    let area = SVGBackend::new(path, (1000, 380)).into_drawing_area();
    area.fill(&WHITE).map_err(|e| anyhow!("{e}"))?;
    for (at, (panel, title)) in
        area.split_evenly((1, 2)).iter().zip(["prefill", "decode"]).enumerate()
    {
        panel_of(panel, title, at, batches, resident, all).map_err(|e| anyhow!("{e}"))?;
    }
    area.present().map_err(|e| anyhow!("{e}"))
}

fn panel_of(
    panel: &DrawingArea<SVGBackend, plotters::coord::Shift>,
    title: &str,
    at: usize,
    batches: &[i64],
    resident: &[usize],
    all: &[Row],
) -> Result<(), Box<dyn std::error::Error>> {
    let most = resident.iter().copied().max().unwrap_or(1) as f64;
    let mut chart = ChartBuilder::on(panel)
        .margin(10)
        .caption(
            format!("{title}: speed of mixed rows, one adapter for all = 1"),
            ("sans-serif", 15),
        )
        .x_label_area_size(36)
        .y_label_area_size(40)
        .build_cartesian_2d((0.9..most * 1.3).log_scale(), 0. ..1.2)?;
    chart
        .configure_mesh()
        .x_desc("resident adapters")
        .x_label_formatter(&|value| format!("{value:.0}"))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (rows, colour) in batches.iter().zip(COLOURS) {
        let own = all.iter().filter(|row| row.rows == *rows);
        let ratio = |row: &Row, one: Times, each: Times| row.speeds(each)[at] / row.speeds(one)[at];
        let ours: Vec<(f64, f64)> =
            own.clone().map(|row| (row.adapters as f64, ratio(row, row.one, row.each))).collect();
        let theirs = own.filter_map(|row| {
            let [one, each] = row.peft?;
            Some((row.adapters as f64, ratio(row, one, each)))
        });
        let theirs: Vec<(f64, f64)> = theirs.collect();
        chart
            .draw_series(LineSeries::new(ours.clone(), colour.stroke_width(2)))?
            .label(format!("{rows} rows"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart.draw_series(ours.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        if !theirs.is_empty() {
            chart
                .draw_series(LineSeries::new(theirs.clone(), colour.mix(0.4).stroke_width(2)))?
                .label(format!("{rows} rows, PEFT's LoRA"))
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], colour.mix(0.4).stroke_width(2))
                });
            chart.draw_series(
                theirs.iter().map(|point| TriangleMarker::new(*point, 4, colour.mix(0.4).filled())),
            )?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(TRANSPARENT)
        .draw()?;
    Ok(())
}
