//! Add LN tuning to an existing tch pipeline: three lines are new, and marked.

use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel};
use tch::nn::{self, Module};
use tch::{Device, Kind, Tensor};

fn main() -> anyhow::Result<()> {
    tch::manual_seed(0);
    let vs = nn::VarStore::new(Device::Cpu);
    let root = vs.root();
    let net = nn::seq()
        .add(nn::linear(&root / "up", 16, 64, Default::default()))
        .add(nn::layer_norm(&root / "norm", vec![64], Default::default()))
        .add_fn(|x| x.relu())
        .add(nn::linear(&root / "head", 64, 4, Default::default()));
    let x = Tensor::randn([256, 16], (Kind::Float, Device::Cpu));
    let y = x.narrow(1, 0, 4).argmax(-1, false);

    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?; // 1. freezes all but the norms
    println!("{}", tuned.trainable_parameters());
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2)?; // 2. instead of AdamW's build(&vs, lr)
    for step in 0..=200 {
        let loss = net.forward(&x).cross_entropy_for_logits(&y);
        opt.backward_step(&loss)?;
        if step % 50 == 0 {
            println!("step {step:3}  loss {:.4}", loss.double_value(&[]));
        }
    }
    tuned.save_pretrained("target/attach")?; // 3. instead of vs.save(…)
    Ok(())
}
