//! Growth of time and memory of a training step with the length, the vocabulary and the depth.

use std::path::Path;

use anyhow::{anyhow, Context, Result};
use plotters::prelude::*;
use serde_json::{json, Value};

use crate::contender::Contender;
use crate::measure::median;
use crate::options::Options;
use crate::who::Who;
use crate::work::{Batch, Shape, Weights, Work};

/// Small, so that what grows is seen and all of it takes minutes.
const SHAPE: Shape = Shape {
    hidden: 256,
    inner: 704,
    layers: 4,
    heads: 4,
    kv_heads: 2,
    vocabulary: 8_192,
    tied: false,
};
const LENGTH: i64 = 256;
const PAIRS: usize = 3;

/// Of the contenders.
const COLOURS: [RGBColor; 3] =
    [RGBColor(32, 96, 176), RGBColor(208, 112, 32), RGBColor(64, 144, 80)];

struct Axis {
    name: &'static str,
    values: &'static [i64],
    work: fn(i64) -> Work,
}

const AXES: [Axis; 3] = [
    Axis {
        name: "sequence length",
        values: &[256, 512, 1_024, 2_048, 4_096],
        work: |length| row(SHAPE, length),
    },
    Axis {
        name: "vocabulary",
        values: &[8_192, 32_768, 65_536, 131_072, 262_144],
        work: |vocabulary| row(Shape { vocabulary, ..SHAPE }, LENGTH),
    },
    Axis {
        name: "layers",
        values: &[4, 8, 16, 32],
        work: |layers| row(Shape { layers, ..SHAPE }, LENGTH),
    },
];

type Quantity = fn(&Measured) -> f64;

fn row(shape: Shape, length: i64) -> Work {
    let (name, kind, device) = ("growth", "bfloat16", "cpu");
    let (batch, weights) = (Batch::new(1, length), Weights::Random);
    Work { name, shape, kind, batch, device, generates: false, weights }
}

/// Of one of the contenders, at one place of an axis.
struct Measured {
    who: Who,
    value: i64,
    milliseconds: f64,
    megabytes: f64,
}

/// Measures, prints, and writes growth.json and a picture of it.
pub fn growth(options: &Options) -> Result<()> {
    let who = [Who::Ours, Who::Eager, Who::Compiled].into_iter().filter(|who| options.take(*who));
    let who: Vec<Who> = who.collect();
    let mut curves = Vec::new();
    for axis in &AXES {
        println!("\n{:<16}{:<14}{:>10}{:>10}", axis.name, "", "ms", "MB");
        let mut curve = Vec::new();
        for value in axis.values {
            for measured in measure(&who, *value, &(axis.work)(*value), options)? {
                let Measured { who, milliseconds, megabytes, .. } = measured;
                println!("{value:<16}{:<14}{milliseconds:>10.1}{megabytes:>10.0}", who.name());
                curve.push(measured);
            }
        }
        curves.push(curve);
    }
    let bench = &options.out;
    std::fs::create_dir_all(bench)?;
    let report: Vec<Value> =
        AXES.iter().zip(&curves).map(|(axis, curve)| json_of(axis, curve)).collect();
    let path = bench.join("growth.json");
    let report = json!({"processor": crate::report::processor(), "axes": report});
    std::fs::write(&path, format!("{report:#}\n"))?;
    let picture = options.svg.clone().unwrap_or_else(|| bench.join("growth.svg"));
    draw(&picture, &who, &curves).with_context(|| format!("'{}'", picture.display()))?;
    println!("\nwritten to {} and {}", path.display(), picture.display());
    Ok(())
}

fn measure(who: &[Who], value: i64, work: &Work, options: &Options) -> Result<Vec<Measured>> {
    let contenders = who.iter().map(|who| Contender::start(*who, work, options));
    let mut contenders = contenders.collect::<Result<Vec<_>>>()?;
    // One that does not count.
    for _ in 0..=PAIRS {
        contenders.iter_mut().try_for_each(Contender::step)?;
    }
    let measured = contenders.iter_mut().map(|contender| {
        let milliseconds = median(contender.times[1..].to_vec());
        let megabytes = contender.megabytes(work.device)?;
        Ok(Measured { who: contender.who, value, milliseconds, megabytes })
    });
    measured.collect()
}

fn json_of(axis: &Axis, curve: &[Measured]) -> Value {
    let point = |m: &Measured| json!({"who": m.who.name(), "value": m.value, "ms": m.milliseconds, "megabytes": m.megabytes});
    json!({"axis": axis.name, "points": curve.iter().map(point).collect::<Vec<_>>()})
}

/// Six panels: time above memory, an axis in each column.
fn draw(path: &Path, who: &[Who], curves: &[Vec<Measured>]) -> Result<()> {
    let area = SVGBackend::new(path, (1080, 640)).into_drawing_area();
    area.fill(&WHITE).map_err(|e| anyhow!("{e}"))?;
    let panels = area.split_evenly((2, AXES.len()));
    let quantities: [(&str, Quantity); 2] =
        [("step, ms", |m| m.milliseconds), ("peak memory, MB", |m| m.megabytes)];
    let places = quantities.iter().flat_map(|quantity| {
        AXES.iter().zip(curves).map(move |(axis, curve)| (quantity, axis, curve))
    });
    for (panel, ((title, quantity), axis, curve)) in panels.iter().zip(places) {
        panel_of(panel, who, &format!("{title}, by {}", axis.name), axis, curve, *quantity)
            .map_err(|e| anyhow!("{e}"))?;
    }
    area.present().map_err(|e| anyhow!("{e}"))
}

fn panel_of(
    panel: &DrawingArea<SVGBackend, plotters::coord::Shift>,
    who: &[Who],
    title: &str,
    axis: &Axis,
    curve: &[Measured],
    quantity: Quantity,
) -> Result<(), Box<dyn std::error::Error>> {
    // With room for the names above the curves.
    let most = curve.iter().map(quantity).fold(0., f64::max) * 1.35;
    let last = axis.values[axis.values.len() - 1] as f64;
    let mut chart = ChartBuilder::on(panel)
        .margin(10)
        .caption(title, ("sans-serif", 16))
        .x_label_area_size(24)
        .y_label_area_size(48)
        .build_cartesian_2d(0. ..last * 1.02, 0. ..most.max(1.))?;
    let label = |value: &f64| match *value {
        value if value >= 1e4 => format!("{:.0}k", value / 1e3),
        value => format!("{value:.0}"),
    };
    chart
        .configure_mesh()
        .x_labels(6)
        .y_labels(6)
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&label)
        .y_label_formatter(&|value| format!("{value:.0}"))
        .draw()?;
    for (index, who) in who.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let own = curve.iter().filter(|m| m.who == *who);
        let points: Vec<(f64, f64)> = own.map(|m| (m.value as f64, quantity(m))).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
            .label(who.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(TRANSPARENT)
        .draw()?;
    Ok(())
}
