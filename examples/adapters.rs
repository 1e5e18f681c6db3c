//! Many adapters on one base: add, switch, disable, combine, compare, save and load.

use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel, LoadOptions};
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
    // Two tasks: the largest of the first four numbers, and the smallest.
    let x = Tensor::randn([256, 16], (Kind::Float, Device::Cpu));
    let largest = x.narrow(1, 0, 4).argmax(-1, false);
    let smallest = x.narrow(1, 0, 4).argmin(-1, false);
    let loss = |y: &Tensor| net.forward(&x).cross_entropy_for_logits(y);

    // Add and train. An adapter starts from the base, whichever others there are.
    let config = LnTuningConfig::default();
    let mut tuned = LnTuningModel::with_adapter_name(&vs, config.clone(), "largest")?;
    tuned.add_adapter("smallest", config)?;
    for (name, y) in [("largest", &largest), ("smallest", &smallest)] {
        tuned.set_adapter(name)?;
        let mut opt = tuned.optimizer(AdamW::default(), 1e-2)?;
        for _ in 0..200 {
            opt.backward_step(&loss(y))?;
        }
    }

    // Combine, switch and disable.
    tuned.interpolate(&[("largest", 0.5), ("smallest", 0.5)], "between")?;
    let row = |name: &str| {
        let (largest, smallest) =
            (loss(&largest).double_value(&[]), loss(&smallest).double_value(&[]));
        println!("{name:<10} {largest:>9.4} {smallest:>9.4}");
    };
    println!("{:<10} {:>9} {:>9}", "losses", "largest", "smallest");
    for name in tuned.adapters() {
        tuned.set_adapter(&name)?;
        row(&name);
    }
    tuned.with_disabled(|| row("base"))?;

    // A batch whose rows use different adapters; this crate's models take the names (`Inputs::adapter_names`).
    let names: Vec<&str> = (0..256).map(|row| ["largest", "smallest"][row % 2]).collect();
    let mixed = tuned.by_adapter(&names, |rows, _| Ok(net.forward(&x.index_select(0, rows))))?;
    println!("a batch of both: {:?}", mixed.size());

    // Compare: against another adapter, or against the base with `None`.
    println!("\n{}", tuned.diff("largest", "smallest")?);

    // Save: a PEFT directory each, target/adapters/largest and so on. Unload: the base is back, bit for bit.
    tuned.save_pretrained("target/adapters")?;
    tuned.unload()?;

    // Load.
    let mut tuned = LnTuningModel::from_pretrained(&vs, "target/adapters/largest")?; // named `default`
    tuned.load_adapter("target/adapters/smallest", "smallest", &LoadOptions::default())?;
    tuned.set_adapter("smallest")?;
    row("read back");
    Ok(())
}
