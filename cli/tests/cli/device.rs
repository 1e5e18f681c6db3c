//! bf16 on a GPU, where there is one.

use crate::program::best_device;
use crate::training;

#[test]
fn a_bf16_model_trains_on_the_best_device_and_its_adapter_does_not_depend_on_it() {
    let device = best_device("a language model in bf16");
    let settings = ["max_steps=20", "kind=bf16", "data.eval_fraction=0.2", "eval_interval=20"];
    let training = training().set(&settings);
    let printed = training.run(&["out=best", device]);
    assert!(printed.contains("weights in BFloat16"), "{printed}");
    assert!(
        printed.contains(if device == "device=cuda" { "on Cuda(0)" } else { "on Cpu" }),
        "{printed}"
    );
    let losses = training.series("best", "loss");
    assert!(losses[19].1 < losses[0].1, "{losses:?}");
    training.run(&["out=cpu", "device=cpu"]);
    let (best, cpu) = (training.series("best", "eval_loss"), training.series("cpu", "eval_loss"));
    assert!((best[0].1 - cpu[0].1).abs() < 0.02, "{best:?}, on the CPU {cpu:?}");
    let memory = training.series("best", "memory_mb");
    assert!(memory[19].1 > 0., "{memory:?}");
}
