//! The cost of operations over the number of variables: it should grow ten times where the variables do.
//!
//! `cargo bench --bench many_variables` prints seconds of one processor for 2,000, 20,000 and 200,000 variables;
//! numbers behind `--` ask for others. The tensors have two elements, so that what is measured is the work per
//! variable.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel, LoadOptions};
use tch::nn::{Init, VarStore};
use tch::{Device, Kind};

/// Blocks of a norm and a linear layer, four variables each.
fn base(variables: usize) -> VarStore {
    let vs = VarStore::new(Device::Cpu);
    for block in 0..variables / 4 {
        let path = vs.root() / "layers" / block;
        for module in ["norm", "up"] {
            for tensor in ["weight", "bias"] {
                let _ = (&path / module).var(tensor, &[2], Init::Const(1.));
            }
        }
    }
    vs
}

/// The time for which this thread has had a processor; where the system does not tell, that of the clock on the wall.
fn now() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let told = told.and_then(|text| text.split(' ').next()?.parse().ok());
    told.map_or_else(|| START.get_or_init(Instant::now).elapsed(), Duration::from_nanos)
}

fn main() {
    tch::set_num_threads(1);
    let asked: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let counts = if asked.is_empty() { vec![2_000, 20_000, 200_000] } else { asked };
    let columns: Vec<Vec<(&str, f64)>> = counts.iter().map(|count| measure(*count)).collect();
    let numbers: Vec<String> = counts.iter().map(usize::to_string).collect();
    println!("| seconds, variables: | {} |", numbers.join(" | "));
    println!("|---|{}", "---:|".repeat(counts.len()));
    for (row, (name, _)) in columns[0].iter().enumerate() {
        let cells: Vec<String> =
            columns.iter().map(|column| format!("{:.4}", column[row].1)).collect();
        println!("| {name} | {} |", cells.join(" | "));
    }
}

fn measure(variables: usize) -> Vec<(&'static str, f64)> {
    let vs = base(variables);
    let mut times = Vec::new();
    let mut start = now();
    let mut took = |name: &'static str| {
        times.push((name, (now() - start).as_secs_f64()));
        start = now();
    };
    let dir = tempfile::tempdir().unwrap();
    let (config, options) = (LnTuningConfig::default, LoadOptions::default());
    let tuned = LnTuningModel::new(&vs, config()).unwrap();
    took("attach, norms found by name and shape");
    tuned.unload().unwrap();
    took("unload");
    let mut tuned = LnTuningModel::new(&vs, config().target_modules(["norm"])).unwrap();
    took("attach, norms by name");
    let all = config().target_modules(["norm"]).modules_to_save(["up"]);
    tuned.add_adapter("all", all).unwrap();
    took("add an adapter of everything");
    tuned.set_adapter("all").unwrap();
    tuned.set_adapter("default").unwrap();
    took("switch there and back");
    let state = tuned.state_dict("default").unwrap();
    took("state_dict");
    tuned.load_state_dict("default", &state, &options).unwrap();
    took("load_state_dict");
    tuned.save_pretrained(dir.path()).unwrap();
    took("save both");
    tuned.load_adapter(dir.path(), "again", &options).unwrap();
    took("load one");
    tuned.diff("again", "default").unwrap();
    took("diff");
    tuned.interpolate(&[("again", 0.5), ("default", 0.5)], "mean").unwrap();
    took("interpolate");
    let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
    let trained: Vec<_> = optimizer.trainable_variables().unwrap();
    let loss = tch::Tensor::stack(&trained, 0).sum(Kind::Float);
    took("an optimizer and a loss");
    optimizer.backward_step(&loss).unwrap();
    took("step");
    let status = tuned.layer_status();
    assert_eq!(status.len(), variables / 2);
    took("layer_status");
    let wrong: Vec<String> = (0..200).map(|index| format!("layers.{index}.nrom")).collect();
    tuned.add_adapter("wrong", config().target_modules(wrong)).unwrap_err();
    took("an error about 200 unknown modules");
    tuned.add_adapter("wrong", config().target_modules(["x".repeat(10_000)])).unwrap_err();
    took("an error about a name of 10 kB");
    times
}
