//! An adapter merged into a model directory or a GGUF file, for one model without an adapter; or a model directory as a
//! GGUF file. No model code is needed.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use ln_tuning::gguf::BlockType;
use ln_tuning::models::{DecoderConfig, ModelConfig};
use ln_tuning::pretrained::{to_gguf, ModelFiles};
use ln_tuning::{merge_with, MergeOptions};
use serde_json::json;

use super::key_mapping::KeyMapping;
use crate::progress;
use crate::text::gguf::write::set_words;

/// Merge an adapter into a model directory or a GGUF file
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  ln-tuning merge --base Llama-3.2-1B --adapter tuned/adapter --out merged --scale 0.7\n  ln-tuning merge --base SmolLM2.Q4_1.gguf --adapter tuned/adapter --out tuned.gguf\n  ln-tuning merge --base Qwen3-0.6B --adapter tuned/adapter --out tuned.gguf --type q8_0"
)]
pub struct Args {
    /// The model: a directory with config.json and safetensors, or a GGUF file, of which no quantised block changes
    #[arg(long, value_name = "MODEL")]
    base: PathBuf,
    /// The adapter: a directory with adapter_config.json and adapter_model.safetensors
    #[arg(long, value_name = "ADAPTER_DIR", required_unless_present = "kind")]
    adapter: Option<PathBuf>,
    /// The directory for the merged model, which must not exist, or be empty; or a new GGUF file
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// Make a GGUF file of a directory (llama, mistral, qwen2, qwen3), with matrices of this type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<Type>,
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

/// Types of matrices in a new GGUF file.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
}

impl Type {
    fn block_type(self) -> BlockType {
        match self {
            Type::F32 => BlockType::F32,
            Type::F16 => BlockType::F16,
            Type::Bf16 => BlockType::BF16,
            Type::Q8_0 => BlockType::Q8_0,
        }
    }
}

fn options(args: &Args) -> MergeOptions {
    MergeOptions::default().scale(args.scale).key_mapping(args.key_mapping.rules.clone())
}

/// A directory, with the adapter if there is one, as a GGUF file.
fn convert(args: &Args, matrices: BlockType) -> Result<()> {
    ensure!(
        args.base.is_dir(),
        "'{}' is no directory, and `--type` makes a GGUF file of one: leave it out, and a GGUF file keeps its types",
        args.base.display()
    );
    let base = ModelFiles::open(&args.base)?;
    if let Some(file) = base.gguf() {
        bail!(
            "'{}' is a GGUF file already, and `--type` makes one of a directory with safetensors: leave it out, and the \
             file keeps its types",
            file.path().display()
        );
    }
    // Refusals that need no file come before an adapter is merged.
    to_gguf(&base, matrices)?;
    ensure!(
        std::fs::symlink_metadata(&args.out).is_err(),
        "'{}' exists, expected the name of a new file: choose another name, or remove it",
        args.out.display()
    );
    ensure!(
        args.adapter.is_some() || (args.scale == 1. && args.key_mapping.rules.is_empty()),
        "`--scale` and `--key-mapping` are about an adapter: give one with `--adapter`, or leave them out"
    );
    let parent = args.out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).with_context(|| format!("'{}'", parent.display()))?;
    // The merged directory stands beside the file until that is whole.
    let beside = tempfile::tempdir_in(parent)?;
    let dir = match &args.adapter {
        Some(adapter) => {
            let options = options(args);
            let merged =
                beside.path().join(args.base.canonicalize()?.file_name().unwrap_or_default());
            merge_with(&args.base, adapter, &merged, &options, |_, _| ())?;
            merged
        }
        None => args.base.clone(),
    };
    let files = ModelFiles::open(&dir)?;
    let mut writer = to_gguf(&files, matrices)?;
    let config = DecoderConfig::from_value(files.config())?;
    set_words(&mut writer, &dir, usize::try_from(config.vocab_size())?)?;
    let (bar, total) = (progress::bytes("converting", 0)?, writer.len());
    bar.set_length(total);
    writer.write_if(
        &args.out,
        |bytes| bar.inc(bytes),
        |new| -> Result<()> {
            let found = ModelFiles::open(new)?;
            let mut own = files.config().clone();
            // llama.cpp has one architecture for llama and mistral.
            own["model_type"] = json!(found.model_type());
            let own = DecoderConfig::from_value(&own)?;
            if let Some((own, its)) = own.difference(&DecoderConfig::from_value(found.config())?) {
                bail!(
                    "'{}' says {own}, and a GGUF file would say {its}: llama.cpp's convert_hf_to_gguf.py may know the model",
                    args.base.join("config.json").display()
                );
            }
            Ok(())
        },
    )?;
    bar.finish_and_clear();
    if args.json {
        println!("{:#}", json!({"out": args.out, "bytes": total, "type": matrices.to_string()}));
    } else {
        println!("{:<10} {matrices} ({total} bytes)", "type");
        println!("{:<10} {}", "written to", args.out.display());
    }
    Ok(())
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(kind) = args.kind {
        return convert(args, kind.block_type());
    }
    let adapter = args.adapter.as_ref().context("give an adapter with `--adapter`")?;
    ensure!(
        !args.base.join("config.json").exists()
            || args.out.extension().is_none_or(|ending| !ending.eq_ignore_ascii_case("gguf")),
        "'{}' is to be a GGUF file, and the base is a directory: say of which type, such as `--type f16`",
        args.out.display()
    );
    let bar = progress::bytes("merging", 0)?;
    let options = options(args);
    let report = merge_with(&args.base, adapter, &args.out, &options, |done, total| {
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
