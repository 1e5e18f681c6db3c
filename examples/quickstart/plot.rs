//! Accuracy and loss over steps, as an SVG.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use crate::train::Run;

const COLOURS: [RGBColor; 4] =
    [RGBColor(200, 60, 50), RGBColor(70, 110, 180), RGBColor(80, 150, 80), RGBColor(130, 130, 130)];

/// One picture with two panels for the runs on the new domain.
pub fn draw(path: &Path, runs: &[&Run], before: f64) -> Result<()> {
    let root = SVGBackend::new(path, (960, 400)).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(480);
    let steps = runs.iter().flat_map(|run| &run.accuracies).map(|p| p.0).fold(1., f64::max);
    let highest = runs.iter().flat_map(|run| &run.losses).map(|p| p.1).fold(0., f64::max);

    let mut chart = ChartBuilder::on(&left)
        .caption("Accuracy on the new domain", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0f64..steps, 0f64..1f64)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("step")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_desc("test accuracy")
        .draw()?;
    chart
        .draw_series(DashedLineSeries::new(
            [(0., before), (steps, before)],
            4,
            4,
            BLACK.stroke_width(1),
        ))?
        .label(format!("before: {before:.2}"))
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], BLACK));
    for (run, colour) in runs.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(run.accuracies.iter().copied(), colour.stroke_width(2)))?
            .label(format!("{}: {:.2}", run.name, run.accuracy))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    let legend = SeriesLabelPosition::LowerRight;
    chart
        .configure_series_labels()
        .position(legend)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;

    let mut chart = ChartBuilder::on(&right)
        .caption("Training loss", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0f64..steps, 0f64..highest * 1.05)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("step")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_desc("cross-entropy")
        .draw()?;
    for (run, colour) in runs.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(run.losses.iter().copied(), colour.stroke_width(2)))?
            .label(format!("{} ({} weights)", run.name, run.trainable))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}
