//! Train in several processes, in a loop of your own; six lines are new, and marked. Alone:
//! `cargo run --features distributed --example distributed`. In two processes, `cargo build` with the same options, and
//! `torchrun --nproc-per-node 2 --no-python target/debug/examples/distributed`.

use std::sync::Arc;

use ln_tuning::distributed::ProcessGroup;
use ln_tuning::{device, AdamW, LnTuningConfig, LnTuningModel};
use tch::nn::{self, Module};
use tch::{Device, Kind, Reduction, Tensor};

/// Rows in the batch of all processes together, tokens in a row, and different tokens.
const SIZES: [i64; 3] = [16, 12, 32];

fn main() -> anyhow::Result<()> {
    let launched = ProcessGroup::is_launched();
    let group = if launched { ProcessGroup::from_env()? } else { ProcessGroup::alone() }; // 1. joins the others
    let (rank, world_size) = (group.rank() as i64, group.world_size() as i64);
    let group = Arc::new(group);
    let device = match device::best_device() {
        Device::Cuda(_) => Device::Cuda(group.local_rank()), // 2. one GPU each
        other => other,
    };
    tch::manual_seed(0);
    let [rows, tokens, words] = SIZES;
    let vs = nn::VarStore::new(device);
    let root = vs.root();
    let net = nn::seq()
        .add(nn::embedding(&root / "embed", words, 64, Default::default()))
        .add(nn::layer_norm(&root / "norm", vec![64], Default::default()))
        .add(nn::linear(&root / "head", 64, words, Default::default()));
    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    let mut opt = tuned.optimizer(AdamW::default(), 5e-2)?;
    opt.set_process_group(group.clone())?; // 3. from now on, a step is one of all processes

    for step in 0..=100 {
        // The batch is the same everywhere. Its rows are of different lengths; the rest of them has no target.
        let x = Tensor::randint(words, [rows, tokens], (Kind::Int64, device));
        let length = Tensor::randint_low(1, tokens + 1, [rows, 1], (Kind::Int64, device));
        let outside = Tensor::arange(tokens, (Kind::Int64, device)).ge_tensor(&length);
        let y = ((&x * 5 + 1).remainder(words)).masked_fill(&outside, -100);
        // 4. Every process takes other rows.
        let own = |all: &Tensor| all.slice(0, rank, None, world_size);
        let (x, y) = (own(&x), own(&y).reshape([-1]));

        let targets = y.ge(0).sum(Kind::Int64).int64_value(&[]);
        let logits = net.forward(&x).reshape([-1, words]);
        let loss = logits.cross_entropy_loss::<Tensor>(&y, None, Reduction::Mean, -100, 0.);
        opt.zero_grad()?;
        opt.backward(&loss)?;
        let (loss, targets) = opt.all_reduce(&loss, targets)?; // 5. the mean over the targets of all
        let _ = opt.clip_grad_norm(1.0)?;
        opt.step()?;
        if rank == 0 && step % 25 == 0 {
            println!("step {step:3}  loss {:.4} over {targets} targets", loss.double_value(&[]));
        }
    }
    if rank == 0 {
        tuned.save_pretrained("target/distributed")?; // 6. once
    }
    group.barrier()?;
    Ok(())
}
