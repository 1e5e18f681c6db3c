//! Training steps with a CUDA graph and without: the same bits, and the time of each; with libtorch's operators too.

use std::time::Instant;

use anyhow::{ensure, Context, Result};
use ln_tuning::device::{set_deterministic, without_fused_functions};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, DecoderConfig, Inputs, Model, ModelConfig};
use ln_tuning::{AdamW, Decay, GraphedStep, LnTuningConfig, LnTuningModel, Schedule};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::On;

/// Trains Llama-3.2-3B's shape on rows of random ids, with a graph and without; prints the times as JSON.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    device: On,
    /// Also without the fused functions.
    #[arg(long)]
    unfused: bool,
    /// Small layers, to try it.
    #[arg(long)]
    small: bool,
    /// Kernels compute nothing: times and numbers are not judged.
    #[arg(long)]
    dry_run: bool,
}

/// Steps whose losses are compared, and those that are timed.
const COMPARED: u64 = 20;
const TIMED: u64 = 50;

/// Losses and gradient norms of some steps, the replays among them, and milliseconds of one.
struct Trained {
    figures: Vec<u64>,
    replayed: u64,
    reason: Option<String>,
    milliseconds: f64,
}

fn config(layers: i64, small: bool) -> Result<DecoderConfig> {
    let (size, wide, heads, vocabulary) =
        if small { (64, 128, 4, 256) } else { (3072, 8192, 24, 128_256) };
    let config = json!({
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": size, "intermediate_size": wide,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads.min(8),
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
    });
    Ok(DecoderConfig::from_value(&config)?)
}

/// The same model each time, from one seed.
fn trained(config: &DecoderConfig, device: Device, graphs: usize, steps: u64) -> Result<Trained> {
    tch::manual_seed(0);
    let mut vs = VarStore::new(device);
    vs.set_kind(Kind::BFloat16);
    let model = Decoder::new(&vs.root(), config)?;
    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3)?;
    let mut step = GraphedStep::default().clip_norm(1.)?.most_graphs(graphs);
    let schedule = Schedule::new(Decay::Cosine, 3, steps);
    let loss = LinearCrossEntropy::default();
    let index = Tensor::arange(128, (Kind::Int64, Device::Cpu)).view([1, 128]);
    let (mut figures, mut replayed, mut begun) = (Vec::new(), 0, Instant::now());
    let wait = || {
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
    };
    // The first ones make what is kept, and the graph.
    let first = steps / 5;
    for at in 0..steps {
        if at == first {
            wait();
            begun = Instant::now();
        }
        optimizer.set_lr(1e-3 * schedule.factor(at))?;
        let ids = ((&index + at as i64) * 7919).remainder(config.vocab_size());
        let stepped = step.run(&mut optimizer, &[&ids], |inputs| {
            model.loss(Inputs::new(&inputs[0]).train(true), &inputs[0], &loss)
        })?;
        replayed += u64::from(stepped.replayed);
        figures.extend([stepped.loss, stepped.grad_norm]);
    }
    wait();
    let milliseconds = begun.elapsed().as_secs_f64() * 1e3 / (steps - first) as f64;
    let bits = figures.iter().map(|figure| Ok(figure.f_double_value(&[])?.to_bits()));
    let figures = bits.collect::<Result<Vec<u64>>>()?;
    let reason = step.without_graph().map(str::to_owned);
    Ok(Trained { figures, replayed, reason, milliseconds })
}

pub fn run(args: &Args) -> Result<()> {
    let device = args.device.device()?;
    println!("| 1 × 128, bf16 | ms a step |\n|---|--:|");
    half(args, device, "")?;
    if args.unfused {
        without_fused_functions(|| half(args, device, ", libtorch's operators"))?;
    }
    let judged = if args.dry_run { "not judged" } else { "equal, bit for bit" };
    println!("\n{COMPARED} steps with a schedule: losses and norms are {judged}");
    Ok(())
}

/// Compares and times steps with a graph and without, all with the functions that are on.
fn half(args: &Args, device: Device, functions: &str) -> Result<()> {
    let few = config(if args.small { 2 } else { 4 }, args.small)?;
    // Attention's gradients are added up in a fixed order.
    set_deterministic(true)?;
    let [plain, graphed] =
        [trained(&few, device, 0, COMPARED)?, trained(&few, device, 8, COMPARED)?];
    set_deterministic(false)?;
    let same = plain.figures == graphed.figures;
    // Two steps come before the capture, one of them at a rate of 0.
    if device.is_cuda() {
        let reason = graphed.reason.unwrap_or_default();
        ensure!(
            graphed.replayed == COMPARED - 2,
            "{} steps were replayed{functions}. {reason}",
            graphed.replayed
        );
    }
    ensure!(same || args.dry_run, "losses and norms with a graph are not those without{functions}");
    let whole = config(if args.small { 2 } else { 28 }, args.small)?;
    let [plain, graphed] = [0, 8].map(|graphs| trained(&whole, device, graphs, TIMED));
    let (plain, graphed) = (plain.context("without a graph")?, graphed.context("with a graph")?);
    println!("| without a graph{functions} | {:.2} |", plain.milliseconds);
    println!(
        "| with a graph{functions}, {} replays | {:.2} |",
        graphed.replayed, graphed.milliseconds
    );
    Ok(())
}
