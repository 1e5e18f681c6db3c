//! Pictures of lines, as SVG.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;

pub type Points = Vec<(f64, f64)>;

/// Points in a line; more are averaged.
const MOST: usize = 1000;
/// With more points than this, a line is drawn palely with a smooth one over it.
const SMOOTHED: usize = 100;

/// The axis across.
pub struct Axis {
    /// Its start, and the least that its end is; points beyond make it longer.
    pub least: (f64, f64),
    pub label: fn(f64) -> String,
}

/// Steps of a run.
pub const STEPS: Axis = Axis { least: (0., 1.), label: |step| format!("{step:.0}") };

/// An SVG with panels beside and below each other.
pub fn picture(
    (width, height): (u32, u32),
    panels: (usize, usize),
    draw: impl FnOnce(&[DrawingArea<SVGBackend, Shift>]) -> Result<()>,
) -> Result<Vec<u8>> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        root.fill(&WHITE)?;
        draw(&root.split_evenly(panels))?;
        root.present()?;
    }
    Ok(svg.into_bytes())
}

/// Draws a line for each name; nothing without points.
pub fn panel(
    area: &DrawingArea<SVGBackend, Shift>,
    caption: &str,
    lines: &[(&str, Points)],
    axis: &Axis,
) -> Result<()> {
    let all = || lines.iter().flat_map(|(_, points)| points.iter());
    if all().next().is_none() {
        return Ok(());
    }
    let end = all().map(|point| point.0).fold(axis.least.1, f64::max);
    let low = all().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = all().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    let margin = ((high - low) * 0.05).max(high.abs() * 1e-3).max(1e-9);
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(28)
        .y_label_area_size(64)
        .build_cartesian_2d(axis.least.0..end, low - margin..high + margin)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_label_formatter(&|x| (axis.label)(*x))
        .y_label_formatter(&|y| {
            if y.abs() >= 1e-2 || *y == 0. {
                format!("{y:.3}")
            } else {
                format!("{y:.1e}")
            }
        })
        .draw()?;
    for ((name, points), colour) in lines.iter().zip(colours(lines.len())) {
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

/// From blue to red, so that lines in an order can be told apart.
fn colours(count: usize) -> Vec<RGBColor> {
    let colour = |at: usize| {
        let hue = 0.6 * (1. - at as f64 / (count - 1) as f64);
        let (red, green, blue) = HSLColor(hue, 0.7, 0.42).to_backend_color().rgb;
        RGBColor(red, green, blue)
    };
    match count {
        0..=2 => vec![RGBColor(70, 110, 180), RGBColor(200, 60, 50)],
        _ => (0..count).map(colour).collect(),
    }
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
