//! The files that a run leaves for people to look at.

use ln_tuning::models::{Decoder, Model};

use crate::common::run_python;
use crate::training;

#[test]
fn metrics_curves_and_tensorboard_say_the_same() {
    let settings =
        ["max_steps=12", "data.eval_fraction=0.2", "eval_interval=4", "tensorboard=true"];
    let training = training().set(&settings);
    let start = std::time::Instant::now();
    let printed = training.run(&[]);
    let seconds = start.elapsed().as_secs_f64();
    for part in [
        "trainable params: 160",
        "5 modules train",
        "60 documents",
        "packed into",
        "on Cpu, weights in Float",
        "5 gradients, none of them 0",
        "memory: weights",
        "step 12: eval_loss",
    ] {
        assert!(printed.contains(part), "'{part}' is not in: {printed}");
    }
    for key in ["loss", "lr", "grad_norm", "tokens", "tokens_per_s", "memory_mb"] {
        let series = training.series("out", key);
        assert_eq!(series.len(), 12, "{key}");
        assert!(series.iter().all(|(_, value)| value.is_finite()), "{key}: {series:?}");
    }
    // No step takes part of another's time.
    let rates = training.series("out", "tokens_per_s");
    let tokens = training.series("out", "tokens");
    let taken: f64 = tokens.iter().zip(&rates).map(|(count, rate)| count.1 / rate.1).sum();
    assert!(taken < seconds, "{taken} of {seconds} s");
    let losses = training.series("out", "eval_loss");
    let steps: Vec<u64> = losses.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [4, 8, 12]);
    for ((_, loss), (_, perplexity)) in losses.iter().zip(training.series("out", "perplexity")) {
        assert!((loss.exp() - perplexity).abs() < 1e-9);
    }
    let svg = training.read("out/curves.svg");
    for part in ["loss", "perplexity", "learning rate", "gradient norm", "<polyline"] {
        assert!(svg.contains(part), "'{part}' is not in the picture");
    }
    let dir = training.path("out/tensorboard");
    let read: serde_json::Value =
        serde_json::from_str(&run_python("events.py", &[dir.to_str().unwrap()])).unwrap();
    for key in ["loss", "eval_loss", "lr"] {
        let ours = training.series("out", key);
        let board: Vec<(u64, f64)> = serde_json::from_value(read[key].clone()).unwrap();
        assert_eq!(board.len(), ours.len(), "{key}");
        for (ours, board) in ours.iter().zip(&board) {
            assert!(ours.0 == board.0 && (ours.1 - board.1).abs() < 1e-5, "{ours:?} {board:?}");
        }
    }
}

#[test]
fn block_checkpointing_changes_no_loss() {
    let training = training().set(&["max_steps=6"]);
    training.run(&["out=plain"]);
    training.run(&["out=all", "checkpointing=all"]);
    training.run(&["out=second", "checkpointing=2"]);
    let plain = training.series("plain", "loss");
    for out in ["all", "second"] {
        for (a, b) in plain.iter().zip(training.series(out, "loss")) {
            assert!((a.1 - b.1).abs() < 1e-5, "{out}: {a:?} {b:?}");
        }
    }
}

#[test]
fn peft_loads_what_comes_out() {
    let training = training().set(&["max_steps=10"]);
    training.run(&[]);
    training.write("ids.json", "[5, 9, 33, 120, 7]");
    let path = |name: &str| training.path(name).to_str().unwrap().to_owned();
    let base = crate::model("llama");
    let arguments = ["loads-lm", base.to_str().unwrap(), &path("out/adapter"), &path("ids.json")];
    let theirs: Vec<f64> = serde_json::from_str(&run_python("finetune.py", &arguments)).unwrap();
    let (vs, model) = Decoder::from_pretrained(&base, tch::Device::Cpu, None).unwrap();
    let _tuned = ln_tuning::LnTuningModel::from_pretrained(&vs, path("out/adapter")).unwrap();
    let ids = tch::Tensor::from_slice2(&[[5_i64, 9, 33, 120, 7]]);
    let ours = tch::no_grad(|| model.logits(&ids)).unwrap().view([-1]);
    let ours = Vec::<f32>::try_from(ours).unwrap();
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(&theirs) {
        assert!((f64::from(*a) - b).abs() < 1e-4, "{a} {b}");
    }
}
