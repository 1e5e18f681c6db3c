//! LayerNorm tuning from end to end, on real data and without a download.
//!
//! A small vision transformer learns to read upright handwritten digits. Then the world changes: ink and paper are
//! swapped and every digit is turned by 90°. LN tuning adapts the model by training 0.6 % of its weights; training
//! only the head, and everything, stand beside it for comparison. What is written can be opened in Python with
//! `ViTForImageClassification.from_pretrained` and `PeftModel.from_pretrained`.

mod data;
mod plot;
mod train;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use clap::Parser;
use ln_tuning::device::{best_device, cuda_status};
use ln_tuning::models::{Model, ModelConfig, ViTConfig, ViTForImageClassification};
use ln_tuning::{pretrained, AdamW, LnTuningConfig, LnTuningModel};
use serde_json::{json, Value};
use tch::nn::{OptimizerConfig, VarStore};
use tch::Device;

use data::{preprocessor_config, Digits, Set};
use train::{accuracy, train, Plan, Run};

/// Train a ViT on handwritten digits, then adapt it to a new domain by LayerNorm tuning.
#[derive(Parser)]
struct Args {
    /// The folder for base/, adapter/, curves.svg and report.json
    #[arg(long, default_value = "target/quickstart")]
    out: PathBuf,
    /// Seed of the initial weights and of the order of the data
    #[arg(long, default_value_t = 0)]
    seed: i64,
    /// Epochs on the upright digits
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..))]
    base_epochs: u64,
    /// Epochs on the new domain, for each of the three methods
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    epochs: u64,
    /// CPU threads
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(i32).range(1..))]
    threads: i32,
    /// Train on the CPU even where there is a CUDA device
    #[arg(long)]
    cpu: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let start = Instant::now();
    tch::set_num_threads(args.threads);
    let device = if args.cpu { Device::Cpu } else { best_device() };
    println!("Training on {device:?}.");
    if !args.cpu && device == Device::Cpu {
        println!("{}.", cuda_status());
    }

    let source = to(Digits::load()?, device);
    let target = source.inverted_and_rotated();
    let config = ViTConfig::from_value(&json!({
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 64,
        "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256, "image_size": 8,
        "patch_size": 2, "num_channels": 1, "initializer_range": 0.1,
    }))?;
    let config = config.with_labels((0..10).map(|digit| digit.to_string()))?;

    // The base, as users have one already.
    tch::manual_seed(args.seed);
    let vs = VarStore::new(device);
    let model = ViTForImageClassification::new(&vs.root(), &config)?;
    let total: u64 = vs.trainable_variables().iter().map(|t| t.numel() as u64).sum();
    let base = full(
        &vs,
        &model,
        &source,
        Plan { name: "base", trainable: total, epochs: args.base_epochs as usize, lr: 2e-3 },
    )?;
    let base_dir = args.out.join("base");
    pretrained::save(&vs, &base_dir, &config.to_json())?;
    write(&base_dir.join("preprocessor_config.json"), &preprocessor_config())?;
    let before = accuracy(&model, &target.test)?;

    // LayerNorm tuning.
    tch::manual_seed(args.seed);
    let epochs = args.epochs as usize;
    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default().base_model("digits-vit"))?;
    println!("{}", tuned.trainable_parameters());
    let ln = tune("LN tuning", &tuned, &model, &target, epochs)?;
    let adapter_dir = args.out.join("adapter");
    tuned.save_pretrained(&adapter_dir)?;
    tuned.unload()?;

    // For comparison: the head alone, which the method can train as well, and everything.
    tch::manual_seed(args.seed);
    let head = LnTuningModel::new(&vs, LnTuningConfig::default().target_modules(["classifier"]))?;
    let head_only = tune("head only", &head, &model, &target, epochs)?;
    let scratch = tempfile::tempdir()?;
    head.save_pretrained(scratch.path())?;
    let head_bytes = scratch.path().join("adapter_model.safetensors").metadata()?.len();
    head.unload()?;
    tch::manual_seed(args.seed);
    let plan = Plan { name: "full fine-tuning", trainable: total, epochs, lr: 1e-3 };
    let everything = full(&vs, &model, &target, plan)?;

    // The accuracies are those of the files on disk.
    let (again_base, again_ln) =
        reload(&base_dir, &adapter_dir, &source.test, &target.test, device)?;
    ensure!(
        again_base == base.accuracy,
        "the reloaded base gives {again_base}, trained {}",
        base.accuracy
    );
    ensure!(
        again_ln == ln.accuracy,
        "the reloaded adapter gives {again_ln}, trained {}",
        ln.accuracy
    );

    let bytes = |path: &Path| Ok::<u64, anyhow::Error>(std::fs::metadata(path)?.len());
    let base_bytes = bytes(&base_dir.join("model.safetensors"))?;
    let adapter_bytes = bytes(&adapter_dir.join("adapter_model.safetensors"))?;
    plot::draw(&args.out.join("curves.svg"), &[&ln, &head_only, &everything], before)?;
    let row = |run: &Run| json!({"accuracy": run.accuracy, "trainable": run.trainable, "seconds": run.seconds});
    let report = json!({
        "source_accuracy": base.accuracy,
        "target_accuracy_before": before,
        "target_accuracy_after": ln.accuracy,
        "trainable": ln.trainable,
        "total": total,
        "percent": 100. * ln.trainable as f64 / total as f64,
        "base": row(&base),
        "ln_tuning": row(&ln),
        "head_only": row(&head_only),
        "full": row(&everything),
        "base_bytes": base_bytes,
        "adapter_bytes": adapter_bytes,
        "seed": args.seed,
        "seconds": start.elapsed().as_secs_f64(),
    });
    write(&args.out.join("report.json"), &report)?;

    println!("\n{:<28} {:>8} {:>10} {:>8} {:>10}", "", "accuracy", "trainable", "seconds", "bytes");
    let line = |name: &str, accuracy: f64, run: Option<&Run>, bytes: u64| {
        let trainable = run.map_or("–".into(), |run| run.trainable.to_string());
        let seconds = run.map_or("–".into(), |run| format!("{:.1}", run.seconds));
        println!("{name:<28} {accuracy:>8.3} {trainable:>10} {seconds:>8} {bytes:>10}");
    };
    line("base on upright digits", base.accuracy, Some(&base), base_bytes);
    line("base on the new domain", before, None, base_bytes);
    line("LN tuning", ln.accuracy, Some(&ln), adapter_bytes);
    line("head only", head_only.accuracy, Some(&head_only), head_bytes);
    line("full fine-tuning", everything.accuracy, Some(&everything), base_bytes);
    println!(
        "\nBoth were read back from disk and give the same accuracy. Look at {}.",
        args.out.display()
    );
    Ok(())
}

/// Trains the weights of an adapter.
fn tune(
    name: &'static str,
    tuned: &LnTuningModel,
    model: &ViTForImageClassification,
    digits: &Digits,
    epochs: usize,
) -> Result<Run> {
    let trainable = tuned.trainable_parameters().trainable;
    let plan = Plan { name, trainable, epochs, lr: 6e-2 };
    let mut opt = tuned.optimizer(AdamW::default().wd(0.), plan.lr)?;
    train(plan, model, digits, |loss, lr| {
        opt.set_lr(lr)?;
        Ok(opt.backward_step_clip_norm(loss, 1.0)?)
    })
}

/// Trains every weight with tch's own optimiser.
fn full(
    vs: &VarStore,
    model: &ViTForImageClassification,
    digits: &Digits,
    plan: Plan,
) -> Result<Run> {
    let mut opt = tch::nn::AdamW::default().build(vs, plan.lr)?;
    train(plan, model, digits, |loss, lr| {
        opt.set_lr(lr);
        opt.backward_step_clip_norm(loss, 1.0);
        Ok(())
    })
}

/// Accuracies of the base on its own domain and of the adapter on the new one, both from disk.
fn reload(
    base: &Path,
    adapter: &Path,
    source: &Set,
    target: &Set,
    device: Device,
) -> Result<(f64, f64)> {
    let (vs, model) = ViTForImageClassification::from_pretrained(base, device, None)?;
    let base_accuracy = accuracy(&model, source)?;
    let _tuned = LnTuningModel::from_pretrained(&vs, adapter)?;
    Ok((base_accuracy, accuracy(&model, target)?))
}

fn write(path: &Path, json: &Value) -> Result<()> {
    std::fs::write(path, format!("{json:#}\n"))
        .with_context(|| format!("cannot write '{}'", path.display()))
}

fn to(digits: Digits, device: Device) -> Digits {
    Digits { train: digits.train.to(device), test: digits.test.to(device) }
}
