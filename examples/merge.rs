//! An adapter into a model directory, for whoever wants one model without an adapter. No model code is needed.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use ln_tuning::merge;
use serde_json::json;

/// Merge an adapter into a Hugging Face model directory.
#[derive(Parser)]
struct Args {
    /// The model: a directory with config.json and safetensors
    #[arg(long, value_name = "MODEL_DIR")]
    base: PathBuf,
    /// The adapter: a directory with adapter_config.json and adapter_model.safetensors
    #[arg(long, value_name = "ADAPTER_DIR")]
    adapter: PathBuf,
    /// Where the merged model goes; the directory must not be there, or be empty
    #[arg(long, value_name = "OUT_DIR")]
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    )?);
    let report = merge(&args.base, &args.adapter, &args.out, |done, total| {
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
            "left_out": report.left_out,
        });
        println!("{report:#}");
        return Ok(());
    }
    println!("{:<10} {}", "merged", report.merged.len());
    for name in &report.merged {
        println!("           {name}");
    }
    println!("{:<10} {} ({} bytes)", "files", report.files, report.bytes);
    for path in &report.left_out {
        println!("{:<10} {} (holds the base's weights)", "left out", path.display());
    }
    println!("{:<10} {}", "written to", args.out.display());
    Ok(())
}
