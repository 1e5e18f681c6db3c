//! The fused functions on the device: each beside libtorch's operators, and the training step with and without them.

use std::time::Instant;

use anyhow::{ensure, Result};
use ln_tuning::device::{memory_info, without_fused_functions};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, DecoderConfig, Model, ModelConfig};
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Cuda, Device, Kind, Tensor};

use crate::fused_checks::checks;
use crate::{Dtype, On};

/// Checks the fused functions on the device, and measures the step with and without them.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    device: On,
    #[arg(long, value_delimiter = ',', default_value = "float32,bfloat16,float16")]
    kind: Vec<Dtype>,
    /// Steps of each way, in turn.
    #[arg(long, default_value_t = 12)]
    steps: usize,
    /// A small model.
    #[arg(long)]
    small: bool,
    /// Under a runtime without a GPU, whose kernels do nothing: numbers are not judged.
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let device = args.device.device()?;
    tch::manual_seed(1);
    println!("| kind | checks | worst (1: one rounding) |\n|---|--:|---|");
    let mut wrong = Vec::new();
    for kind in &args.kind {
        let mut all = checks(device, kind.kind())?;
        all.sort_by(|a, b| b.off.total_cmp(&a.off));
        println!("| {} | {} | {:.2}, {} |", kind.name(), all.len(), all[0].off, all[0].name);
        wrong.extend(all.into_iter().filter(|check| check.off > 1.));
    }
    for check in wrong.iter().filter(|_| !args.dry_run) {
        println!("wrong: {}, {}", check.name, check.off);
    }
    println!();
    println!("| step, bf16 | operators | fused | operators ÷ fused |\n|---|--:|--:|--:|");
    let rows = if args.small { [(2, 32), (1, 16)] } else { [(4, 768), (1, 128)] };
    for (batch, length) in rows {
        let [plain, fused] = times(device, args.small, batch, length, args.steps)?;
        println!(
            "| {batch} × {length} | {:.2} ms | {:.2} ms | {:.3} |",
            1e3 * plain,
            1e3 * fused,
            plain / fused
        );
    }
    println!("\n{}", memory_info(device)?);
    ensure!(args.dry_run || wrong.is_empty(), "{} checks are wrong", wrong.len());
    Ok(())
}

/// Medians of seconds: with libtorch's operators, and with the fused functions.
fn times(device: Device, small: bool, batch: i64, length: i64, steps: usize) -> Result<[f64; 2]> {
    let [hidden, inner, layers, heads] = if small { [64, 128, 2, 4] } else { [3072, 8192, 28, 24] };
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": if small { 100 } else { 128_256 },
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads / 3 + heads % 3, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": true,
    });
    let mut vs = VarStore::new(device);
    vs.set_kind(Kind::BFloat16);
    let model = Decoder::new(&vs.root(), &DecoderConfig::from_value(&config)?)?;
    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    let mut opt = tuned.optimizer(AdamW::default(), 1e-4)?;
    let labels = Tensor::arange(batch * length, (Kind::Int64, Device::Cpu)).remainder(97);
    let labels = labels.view([batch, length]);
    let ids = labels.to_device(device);
    let mut step = |fused: bool| -> Result<f64> {
        let wait = || {
            if let Device::Cuda(index) = device {
                Cuda::synchronize(index as i64);
            }
        };
        wait();
        let begun = Instant::now();
        let mut go = || -> Result<()> {
            let loss = model.loss(&ids, &labels, &LinearCrossEntropy::default())?;
            opt.backward_step_clip_norm(&loss, 1.)?;
            Ok(())
        };
        if fused {
            go()?;
        } else {
            without_fused_functions(&mut go)?;
        }
        wait();
        Ok(begun.elapsed().as_secs_f64())
    };
    for fused in [false, true, false, true] {
        step(fused)?;
    }
    let mut all = [Vec::new(), Vec::new()];
    for at in 0..2 * steps {
        all[at % 2].push(step(at % 2 == 1)?);
    }
    Ok(all.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }))
}
