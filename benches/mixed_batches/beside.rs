//! 16 adapters in a batch, beside PEFT's LoRA with its default targets and with all linear layers.

use anyhow::Result;
use serde_json::{json, Value};
use tch::{Device, Kind};

use crate::ours::Ours;
use crate::peft::Peft;
use crate::task::{torch_name, Shape, Targets, DEEP, SMALL};
use crate::{medians, Mix, Side, Times, THREADS};

const ADAPTERS: usize = 16;

/// Rows and the length of their prompts.
const BATCHES: [(i64, i64); 2] = [(16, 64), (64, 16)];

/// Measures and prints; gives a report.
pub fn measure(quick: bool, deep: bool, rounds: usize) -> Result<Value> {
    println!(
        "\n{ADAPTERS} adapters in turn, tokens a second; ours ÷ PEFT. `share`: of PEFT's time, that of transformers without \
         any adapter, which no way of mixing can avoid there.\n"
    );
    println!("| llama | kind | rows | | one | mixed | ratio | LoRA of | mixed | ours | share |");
    println!("|---|---|--:|---|--:|--:|--:|---|--:|--:|--:|");
    let mut all = Vec::new();
    let models: &[(Shape, Kind)] = &[
        (SMALL, Kind::Float),
        (SMALL, Kind::BFloat16),
        (DEEP, Kind::Float),
        (DEEP, Kind::BFloat16),
    ];
    let models = match (quick, deep) {
        (true, true) => &models[3..],
        (false, true) => &models[2..],
        (true, false) => &models[..1],
        (false, false) => models,
    };
    for (shape, kind) in models {
        let mut ours = Ours::new(*shape, *kind, Device::Cpu)?;
        ours.grow(ADAPTERS)?;
        let start = |targets| Peft::start(shape, *kind, targets, THREADS);
        let mut few = start(Targets::Default)?;
        let mut linear = start(Targets::AllLinear)?;
        few.grow(ADAPTERS)?;
        linear.grow(ADAPTERS)?;
        for batch in if quick { &BATCHES[..1] } else { &BATCHES } {
            let mut sides: [&mut dyn Side; 3] = [&mut ours, &mut few, &mut linear];
            let each = Mix::Each(ADAPTERS);
            let asked = [(0, Mix::One), (0, each), (1, Mix::Base), (1, each), (2, each)];
            let times = medians(&mut sides, &asked, *batch, rounds, None)?;
            all.push(print(shape, *kind, *batch, &times)?);
        }
    }
    Ok(Value::Array(all))
}

/// `times`: one adapter here and each in turn, transformers without any, LoRA with its default targets and all linear
/// layers.
fn print(shape: &Shape, kind: Kind, (rows, length): (i64, i64), times: &[Times]) -> Result<Value> {
    let speeds: Vec<[f64; 2]> = times.iter().map(|times| times.speeds(rows, length)).collect();
    for (at, part) in ["prefill", "decode"].into_iter().enumerate() {
        let of = |side: usize| speeds[side][at];
        for (side, targets) in [(3, Targets::Default), (4, Targets::AllLinear)] {
            println!(
                "| {} | {} | {rows} | {part} | {:.0} | {:.0} | {:.3} | {} | {:.0} | {:.1}× | {:.2} |",
                shape.name,
                torch_name(kind)?,
                of(0),
                of(1),
                of(1) / of(0),
                targets.name(),
                of(side),
                of(1) / of(side),
                of(side) / of(2),
            );
        }
    }
    let of = |side: usize| json!({"prefill_tokens_per_s": speeds[side][0], "decode_tokens_per_s": speeds[side][1]});
    Ok(json!({
        "model": shape.name, "kind": torch_name(kind)?, "rows": rows, "length": length, "adapters": ADAPTERS,
        "one": of(0), "mixed": of(1), "transformers": of(2), "peft_default": of(3), "peft_all_linear": of(4),
    }))
}
