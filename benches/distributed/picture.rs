//! The time of a step over the number of ranks, as a picture.

use std::path::Path;

use anyhow::{anyhow, Result};
use plotters::prelude::*;

/// Milliseconds of a step, in which each rank has its own rows.
pub struct Row {
    pub ranks: usize,
    pub ours: f64,
    /// PEFT under torch's DistributedDataParallel.
    pub ddp: f64,
}

const OURS: RGBColor = RGBColor(32, 96, 176);
const DDP: RGBColor = RGBColor(208, 112, 32);

/// Each with a pale line for ranks that cost each other nothing: with a core for each, a step takes as long as that of
/// one rank.
pub fn draw(path: &Path, cores: usize, rows: &[Row]) -> Result<()> {
    draw_rows(path, cores, rows).map_err(|error| anyhow!("'{}': {error}", path.display()))
}

fn draw_rows(path: &Path, cores: usize, rows: &[Row]) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, (640, 360)).into_drawing_area();
    area.fill(&WHITE)?;
    let most = rows.iter().map(|row| row.ours.max(row.ddp)).fold(0., f64::max);
    let last = rows.iter().map(|row| row.ranks).max().unwrap_or(1) as f64;
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .caption(format!("A step on {cores} cores, one thread for each rank"), ("sans-serif", 15))
        .x_label_area_size(36)
        .y_label_area_size(52)
        .build_cartesian_2d((0.9..last * 1.1).log_scale(), 0. ..most * 1.15)?;
    chart
        .configure_mesh()
        .x_desc("ranks")
        .y_desc("milliseconds of a step")
        .x_label_formatter(&|ranks| format!("{ranks:.0}"))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let side = |of: fn(&Row) -> f64| rows.iter().map(move |row| (row.ranks as f64, of(row)));
    let (ours, ddp) = (side(|row| row.ours), side(|row| row.ddp));
    for (name, colour, side) in [("ln-tuning", OURS, ours), ("PEFT under DDP", DDP, ddp)] {
        let points: Vec<(f64, f64)> = side.collect();
        let one = points.first().map_or(0., |(_, ms)| *ms);
        let ideal = points.iter().map(|(ranks, _)| (*ranks, one * (ranks / cores as f64).max(1.)));
        chart
            .draw_series(LineSeries::new(ideal, colour.mix(0.35).stroke_width(1)))?
            .label(format!("{name}, ideal"))
            .legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 16, y)], colour.mix(0.35).stroke_width(1))
            });
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(TRANSPARENT)
        .draw()?;
    area.present()?;
    Ok(())
}
