//! An adapter merged into a model directory or a GGUF file, for one model without an adapter. No model code is needed.

use std::path::PathBuf;

use anyhow::Result;
use ln_tuning::{merge_with, MergeOptions};
use serde_json::json;

use super::key_mapping::KeyMapping;
use crate::progress;

/// Merge an adapter into a model directory or a GGUF file
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  ln-tuning merge --base Llama-3.2-1B --adapter tuned/adapter --out merged --scale 0.7\n  ln-tuning merge --base SmolLM2.Q4_1.gguf --adapter tuned/adapter --out tuned.gguf"
)]
pub struct Args {
    /// The model: a directory with config.json and safetensors, or a GGUF file, of which no quantised block changes
    #[arg(long, value_name = "MODEL")]
    base: PathBuf,
    /// The adapter: a directory with adapter_config.json and adapter_model.safetensors
    #[arg(long, value_name = "ADAPTER_DIR")]
    adapter: PathBuf,
    /// The directory for the merged model, which must not exist, or be empty; for a GGUF file, the new file
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// Merge base + SCALE · (tuned − base): 0 is the base, 1 the adapter. Tensors that the base lacks, such as a new
    /// head, stay whole
    #[arg(long, default_value_t = 1., allow_negative_numbers = true)]
    scale: f64,
    #[command(flatten)]
    key_mapping: KeyMapping,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let bar = progress::bytes("merging", 0)?;
    let options =
        MergeOptions::default().scale(args.scale).key_mapping(args.key_mapping.rules.clone());
    let report = merge_with(&args.base, &args.adapter, &args.out, &options, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    if args.json {
        let report = json!({
            "out": args.out,
            "merged": report.merged,
            "files": report.files,
            "bytes": report.bytes,
            "scale": args.scale,
            "unscaled": report.unscaled,
            "left_out": report.left_out,
        });
        println!("{report:#}");
        return Ok(());
    }
    println!("{:<10} {}", "merged", report.merged.len());
    for name in &report.merged {
        println!("           {name}");
    }
    for key in &report.unscaled {
        println!("{:<10} {key} (not in the base)", "not scaled");
    }
    println!("{:<10} {} ({} bytes)", "files", report.files, report.bytes);
    for path in &report.left_out {
        println!("{:<10} {} (of the base)", "left out", path.display());
    }
    println!("{:<10} {}", "written to", args.out.display());
    Ok(())
}
