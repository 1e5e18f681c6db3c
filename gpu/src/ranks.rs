//! Steps of one process, or of one of several that torchrun has started, on the same rows.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use ln_tuning::distributed::{ProcessGroup, ReduceOp};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, Inputs, Model};
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel};
use serde_json::json;
use tch::{Cuda, Device, Kind, Tensor};

use crate::{Dtype, On};

/// Trains a language model, and leaves the trained weights in OUT, a file for each rank. Rank 0 prints JSON.
#[derive(Debug, clap::Args)]
pub struct Args {
    model: PathBuf,
    #[arg(long)]
    device: On,
    #[arg(long)]
    kind: Dtype,
    #[arg(long)]
    out: PathBuf,
    #[arg(long, default_value_t = 12)]
    steps: i64,
    /// Tokens of a row.
    #[arg(long, default_value_t = 128)]
    length: i64,
}

/// Of a step, all ranks together.
const ROWS: i64 = 4;
/// The time that anything takes at most.
const PATIENCE: Duration = Duration::from_secs(90);
/// Bytes of an all-reduce that is timed.
const SIZES: [i64; 3] = [350_000, 1_400_000, 100_000_000];

pub fn run(args: &Args) -> Result<()> {
    let device = args.device.device()?;
    if !device.is_cuda() {
        tch::set_num_threads(1);
    }
    let launched = ProcessGroup::is_launched();
    let group =
        if launched { ProcessGroup::from_env_with(PATIENCE)? } else { ProcessGroup::alone() };
    let group = Arc::new(group);
    // Ranks share a GPU where there are not enough.
    let device = match device {
        Device::Cuda(_) => Device::Cuda(group.local_rank() % Cuda::device_count().max(1) as usize),
        other => other,
    };
    let settled = || {
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
    };
    let (vs, model) = Decoder::from_pretrained(&args.model, device, args.kind.kind())?;
    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    let mut opt = tuned.optimizer(AdamW::default(), 1e-3)?;
    opt.set_process_group(group.clone())?;
    let (rank, size) = (group.rank() as i64, group.world_size() as i64);
    let (mut losses, mut times) = (Vec::new(), Vec::new());
    for step in 0..args.steps {
        settled();
        let begun = Instant::now();
        let (ids, labels) = rows(step, args.length);
        let own = |tensor: &Tensor| tensor.slice(0, rank, None, size);
        let (ids, labels) = (own(&ids), own(&labels));
        let targets = labels.slice(1, 1, None, 1).ge(0).sum(Kind::Int64).int64_value(&[]);
        let ids = ids.to_device(device);
        let loss =
            model.loss(Inputs::new(&ids).train(true), &labels, &LinearCrossEntropy::default())?;
        opt.zero_grad()?;
        opt.backward(&loss)?;
        losses.push(opt.all_reduce(&loss, targets)?.0);
        let _ = opt.clip_grad_norm(1.)?;
        opt.step()?;
        settled();
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let mut weights = tuned.state_dict("default")?;
    for (_, weight) in &mut weights {
        *weight = weight.f_detach()?.f_to_device(Device::Cpu)?.copy();
    }
    weights.push(("losses".into(), Tensor::stack(&losses, 0).to_device(Device::Cpu)));
    Tensor::write_safetensors(&weights, args.out.join(format!("rank-{rank}.safetensors")))?;
    let reduced = if launched { all_reduce(&group, device, &settled)? } else { Vec::new() };
    if rank == 0 {
        let found = json!({
            "ranks": size, "nccl": group.uses_nccl(), "step_ms": median(times.split_off(times.len() / 3)),
            "all_reduce_ms": reduced,
        });
        println!("{found}");
    }
    Ok(group.barrier()?)
}

/// Rows of a step and their labels, of which each has another number.
fn rows(step: i64, length: i64) -> (Tensor, Tensor) {
    let options = (Kind::Int64, Device::Cpu);
    let index = Tensor::arange(ROWS * length, options) + step * 7919;
    let ids = ((&index * &index * 31).remainder(600) + 3).view([ROWS, length]);
    let counted = (Tensor::arange(ROWS, options) + 1) * length;
    let counted = counted.floor_divide_scalar(ROWS).view([ROWS, 1]);
    let labels = ids.masked_fill(&Tensor::arange(length, options).ge_tensor(&counted), -100);
    (ids, labels)
}

/// Median milliseconds of sums of f32, whose results are looked at.
fn all_reduce(group: &ProcessGroup, device: Device, settled: &impl Fn()) -> Result<Vec<f64>> {
    let mut medians = Vec::new();
    let sum = (1..=group.world_size()).sum::<usize>() as f64;
    for size in SIZES {
        let mut tensor = Tensor::zeros([size / 4], (Kind::Float, device));
        let mut times = Vec::new();
        for _ in 0..10 {
            let _ = tensor.fill_(group.rank() as f64 + 1.);
            settled();
            group.barrier()?;
            let begun = Instant::now();
            group.all_reduce(&mut tensor, ReduceOp::Sum)?;
            settled();
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        let ends = [tensor.min().double_value(&[]), tensor.max().double_value(&[])];
        ensure!(ends == [sum, sum], "the sum of {size} bytes is {ends:?}, expected {sum}");
        medians.push(median(times.split_off(2)));
    }
    Ok(medians)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
