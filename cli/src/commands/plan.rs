//! The tensors of a model that would train: from names and shapes alone, for any architecture.

use std::path::PathBuf;

use anyhow::Result;
use ln_tuning::models::{AnyModel, Load};
use ln_tuning::pretrained::{BaseBytes, Frozen, ModelFiles};
use ln_tuning::{Layers, LnTuningConfig, Norms, Recipe, Selection};
use serde_json::json;
use tch::Device;

use crate::train::memory;

/// Show which tensors of a model would train
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ln-tuning plan --model Llama-3.2-1B --norms all")]
pub struct Args {
    /// A directory with config.json and safetensors, or a GGUF file; weights are not read
    #[arg(long)]
    model: PathBuf,
    /// An adapter's configuration, JSON or YAML. Default: no target_modules, so that the architecture decides
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Without target_modules: the norms that PEFT tunes for this model type (peft), or every one (all)
    #[arg(long, value_name = "peft|all", default_value = "all", value_parser = norms)]
    norms: Norms,
    /// Instead: a setting of the paper for models of images and texts: layernorm (norms, connector, embeddings, head),
    /// layernorm-simple (norms alone) or connector
    #[arg(long, value_name = "NAME", conflicts_with_all = ["config", "norms"])]
    recipe: Option<Recipe>,
    /// The norms of these layers only, such as 8..24 (without 24) or 8..; those outside of layers are left out
    #[arg(long, value_name = "BAND")]
    layers: Option<Layers>,
    /// The way in which the model's matrices would be kept, as `base` of training and --base-weights of generate:
    /// mapped, device, gguf, int8, nf4, packed or streamed; or two of them, as nf4,device
    #[arg(long, value_name = "HOW", default_value_t)]
    base_weights: Frozen,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn norms(name: &str) -> Result<Norms, serde_json::Error> {
    serde_json::from_value(name.into())
}

pub fn run(args: &Args) -> Result<()> {
    let files = ModelFiles::open(&args.model)?;
    let config = match &args.config {
        Some(path) => LnTuningConfig::from_file(path)?,
        None => LnTuningConfig { recipe: args.recipe, ..LnTuningConfig::default() },
    };
    let variables = files.variables_with_copies();
    let mut selection = Selection::new(&variables, &config, files.model_type(), args.norms)?;
    if let Some(layers) = args.layers {
        selection = selection.in_layers(&variables, &config, layers)?;
    }
    let selection = selection.used_by(&variables, &config, files.config(), files.head())?;
    let modules: Vec<&str> =
        selection.modules().iter().map(|module| module.path.as_str()).collect();
    let tensors: Vec<&str> = selection.variables().collect();
    let numel = |shape: &[i64]| shape.iter().product::<i64>();
    let all = files.variables();
    let parameters = all.iter().filter(|variable| variable.is_parameter);
    let total: i64 = parameters.map(|variable| numel(&variable.shape)).sum();
    let chosen = |name: &str| tensors.contains(&name);
    let tuned = variables.iter().filter(|variable| variable.is_parameter && chosen(&variable.name));
    let trainable: i64 = tuned.map(|variable| numel(&variable.shape)).sum();
    let weights: usize = all
        .iter()
        .map(|variable| numel(&variable.shape) as usize * variable.kind.elt_size_in_bytes())
        .sum();
    let mut base = BaseBytes::default();
    base.all = weights as u64;
    if args.base_weights != Frozen::default() {
        let load = Load::on(Device::Cpu).frozen(args.base_weights);
        base = AnyModel::base_bytes(ModelFiles::open(&args.model)?, &load)?;
    }
    // In f32: the weights, their gradients and two moments.
    let trained = trainable * 16;
    let percent = 100. * trainable as f64 / total.max(1) as f64;
    let unused = selection.unused();
    if args.json {
        let unused = unused.iter().map(|m| json!({"module": m.path, "reason": m.reason}));
        let plan = json!({
            "model_type": files.model_type(),
            "modules": modules,
            "tensors": tensors,
            "unused": unused.collect::<Vec<_>>(),
            "trainable": trainable,
            "total": total,
            "percent": percent,
            "memory_bytes": json!({"weights": weights, "trained": trained}),
            "base": memory::base(args.base_weights, base),
        });
        println!("{plan:#}");
        return Ok(());
    }
    let width = tensors.iter().map(|name| name.len()).max().unwrap_or(0);
    for variable in variables.iter().filter(|variable| chosen(&variable.name)) {
        println!("{:<width$} {:?} {:?}", variable.name, variable.shape, variable.kind);
    }
    let model_type = files.model_type().unwrap_or("unknown model type");
    println!("\n{model_type}: {} modules, {} tensors", modules.len(), tensors.len());
    println!("trainable: {trainable} of {total} ({percent:.4} %)");
    for module in unused {
        println!("left out, since it gets no gradient: {}: {}", module.path, module.reason);
    }
    let place = files.gguf().map_or("as in the files".to_owned(), |file| {
        let blocks: usize = file.tensors().iter().map(|tensor| tensor.len).sum();
        format!(
            "as numbers ({:.1} MB in the file's blocks, with `base: gguf`)",
            blocks as f64 / 1e6
        )
    });
    println!(
        "memory: weights {:.1} MB {place}, what trains and its optimiser {:.1} MB, and activations",
        weights as f64 / 1e6,
        trained as f64 / 1e6
    );
    println!("{}", memory::base_in_words(args.base_weights, base));
    Ok(())
}
