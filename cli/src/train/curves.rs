//! `curves.svg`: the course of a run so far.

use std::path::Path;

use anyhow::Result;
use ln_tuning::atomic;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::metrics::Metrics;

type Points = Vec<(f64, f64)>;

/// Points in a line; more are averaged.
const MOST: usize = 1000;
/// With more points than this, a line is drawn palely with a smooth one over it.
const SMOOTHED: usize = 100;

/// Draws the loss, the learning rate and the gradient norm of every step, and the evaluations.
pub fn draw(out: &Path, metrics: &Metrics) -> Result<()> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (960, 640)).into_drawing_area();
        root.fill(&WHITE)?;
        let panels = root.split_evenly((2, 2));
        let series = |key: &str| metrics.series(key);
        let accuracy = series("accuracy");
        let last = if accuracy.is_empty() {
            ("perplexity", series("perplexity"))
        } else {
            ("accuracy", accuracy)
        };
        let loss = [("training", series("loss")), ("evaluation", series("eval_loss"))];
        panel(&panels[0], "loss", &loss)?;
        panel(&panels[1], last.0, &[("evaluation", last.1)])?;
        panel(&panels[2], "learning rate", &[("", series("lr"))])?;
        panel(&panels[3], "gradient norm", &[("", series("grad_norm"))])?;
        root.present()?;
    }
    Ok(atomic::write(&[(out.join("curves.svg"), svg.into_bytes())])?)
}

fn panel(
    area: &DrawingArea<SVGBackend, Shift>,
    caption: &str,
    lines: &[(&str, Points)],
) -> Result<()> {
    let all = || lines.iter().flat_map(|(_, points)| points.iter());
    if all().next().is_none() {
        return Ok(());
    }
    let steps = all().map(|point| point.0).fold(1., f64::max);
    let low = all().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = all().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    let margin = ((high - low) * 0.05).max(high.abs() * 1e-3).max(1e-9);
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(28)
        .y_label_area_size(64)
        .build_cartesian_2d(0f64..steps, low - margin..high + margin)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| {
            if y.abs() >= 1e-2 || *y == 0. {
                format!("{y:.3}")
            } else {
                format!("{y:.1e}")
            }
        })
        .draw()?;
    for ((name, points), colour) in
        lines.iter().zip([RGBColor(70, 110, 180), RGBColor(200, 60, 50)])
    {
        if points.is_empty() {
            continue;
        }
        let points = thinned(points);
        let noisy = points.len() > SMOOTHED;
        if noisy {
            let pale = colour.mix(0.25).stroke_width(1);
            chart.draw_series(LineSeries::new(points.iter().copied(), pale))?;
        }
        let shown = if noisy { smooth(&points) } else { points };
        let drawn = chart.draw_series(LineSeries::new(shown, colour.stroke_width(2)))?;
        if !name.is_empty() {
            drawn.label(*name).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2))
            });
        }
    }
    if lines.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
    }
    Ok(())
}

/// Means of neighbours, where there are too many points to be told apart.
fn thinned(points: &Points) -> Points {
    let mean = |points: &[(f64, f64)]| {
        let count = points.len() as f64;
        let sum = points.iter().fold((0., 0.), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / count, sum.1 / count)
    };
    points.chunks(points.len().div_ceil(MOST)).map(mean).collect()
}

/// The mean of each point and its neighbours, a twentieth of all.
fn smooth(points: &Points) -> Points {
    let reach = points.len() / 40;
    let mean = |place: usize| {
        let near = &points[place.saturating_sub(reach)..points.len().min(place + reach + 1)];
        (points[place].0, near.iter().map(|point| point.1).sum::<f64>() / near.len() as f64)
    };
    (0..points.len()).map(mean).collect()
}
