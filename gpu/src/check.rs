//! All models of a folder, in one process: loading libtorch's CUDA takes longer than a tiny model.

use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};

use crate::attention::Attention;
use crate::model::Checked;
use crate::{Dtype, On};

/// Logits, loss, gradients and trained weights of every model that `gpu/make_models.py` has made.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of the models.
    models: PathBuf,
    #[arg(long)]
    device: On,
    #[arg(long, value_delimiter = ',')]
    kind: Vec<Dtype>,
    #[arg(long, value_delimiter = ',')]
    attention: Vec<Attention>,
    /// Under a runtime without a GPU, whose kernels do nothing: samples of the base differ then by chance.
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &Args) -> Result<()> {
    tch::set_num_threads(1);
    // Before anything else of libtorch, which looks for CUDA once.
    let device = args.device.device()?;
    let mut dirs = Vec::new();
    let entries = std::fs::read_dir(&args.models);
    for entry in entries.with_context(|| format!("'{}'", args.models.display()))? {
        let dir = entry?.path();
        if dir.join("check.json").exists() {
            dirs.push(dir);
        }
    }
    dirs.sort();
    ensure!(!dirs.is_empty(), "no model with a check.json in '{}'", args.models.display());
    for (dir, kind) in dirs.iter().flat_map(|dir| args.kind.iter().map(move |kind| (dir, kind))) {
        let checked = Checked::open(dir, device, kind.kind());
        for attention in &args.attention {
            let name = ["ours", args.device.name(), kind.name(), attention.name()].join(".");
            let computed = checked.as_ref().map_err(|error| format!("{error:#}"));
            let computed = computed.and_then(|checked| {
                attention
                    .choose()
                    .and_then(|()| checked.compute(args.dry_run))
                    .map_err(|e| format!("{e:#}"))
            });
            write(dir, &name, computed)?;
        }
    }
    println!("{} models", dirs.len());
    Ok(())
}

/// The numbers that were computed, or the error in their place: one model must not keep the others from their check.
fn write(
    dir: &Path,
    name: &str,
    computed: Result<Vec<(String, tch::Tensor)>, String>,
) -> Result<()> {
    match computed {
        Ok(tensors) => {
            tch::Tensor::write_safetensors(&tensors, dir.join(format!("{name}.safetensors")))?;
        }
        Err(error) => std::fs::write(dir.join(format!("{name}.error")), error)?,
    }
    Ok(())
}
