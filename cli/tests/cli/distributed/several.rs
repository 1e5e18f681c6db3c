//! Several runs at once, by many ranks.

use std::thread::scope;

use serde_json::{json, Value};
use tch::{Kind, Tensor};

use super::{lines, port, processes, signal, variables, wait_until, well, Hosts};
use crate::program::Training;
use crate::training;

/// Two ranks without torchrun.
fn two(training: &Training, set: &[&str], arguments: &[&str]) {
    let port = port();
    let hosts = Hosts::new(120).arguments(arguments);
    let hosts = ["0", "1"]
        .iter()
        .fold(hosts, |hosts, rank| hosts.rank(&variables(rank, "2", &port), training, set));
    well(&hosts.run().unwrap());
}

fn apart(training: &Training, a: &str, b: &str) -> f64 {
    let read = |out: &str| {
        let path = training.path(out).join("adapter/adapter_model.safetensors");
        let mut tensors = Tensor::read_safetensors(path).unwrap();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    };
    let pairs = read(a).into_iter().zip(read(b));
    let apart = pairs.map(|((name, a), (other, b))| {
        assert_eq!(name, other);
        (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
    });
    apart.fold(0., f64::max)
}

#[test]
fn several_runs_of_two_ranks_end_as_each_does_alone_though_a_rank_is_killed() {
    let training = training().set(&[
        "max_steps=8",
        "data.eval_fraction=0.2",
        "eval_interval=4",
        "save_interval=2",
        "batch_size=2",
    ]);
    training
        .write("gold.jsonl", &json!({"prompt": "all that ", "completion": "glitters"}).to_string());
    // One row, so that a rank has none; one with fewer steps.
    let tasks = json!([
        {"name": "words", "optimizer": {"lr": 0.03}},
        {"name": "short", "optimizer": {"lr": 0.01}, "max_steps": 3, "batch_size": 4},
        {"name": "gold", "data": {"train": "gold.jsonl", "eval_fraction": 0.0, "packing": false}},
    ]);
    let tasks = format!("tasks={tasks}");
    let sweep =
        ["--sweep", "optimizer.lr=1e-5,0.03,1e-3,1e30", "--halving", "--exact", "--keep-all"];
    let gold = ["data.train=gold.jsonl", "data.eval_fraction=0", "data.packing=false"];
    let gold = [&["out=gold", "clip_norm=null"], &gold[..]].concat();
    scope(|scope| {
        scope.spawn(|| two(&training, &["out=exact", "clip_norm=null"], &sweep));
        scope.spawn(|| {
            two(&training, &["out=alone", "optimizer.lr=0.03", "clip_norm=null"], &[]);
            two(&training, &gold, &[]);
        });
        let run = scope.spawn(|| {
            let arguments = ["--standalone", "--nproc-per-node=2", "--max-restarts=3"];
            let set = ["out=tasks", "clip_norm=null", &tasks];
            Hosts::new(120).torchrun(&arguments, &training, &set).run().unwrap()
        });
        let tasks = || {
            let all = processes(training.dir.path(), 1).into_iter();
            all.filter(|process| {
                let words = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&words).contains("out=tasks")
            })
        };
        wait_until(|| lines(&training, "tasks/words") >= 3 || run.is_finished());
        tasks().for_each(|process| signal("KILL", process));
        well(&run.join().unwrap());
    });
    // To the bit, with what others do beside it.
    let bytes = |name: String| std::fs::read(training.path(&name)).unwrap();
    for file in ["adapter/adapter_model.safetensors", "checkpoints/step-8/optimizer.safetensors"] {
        let ours = bytes(format!("exact/runs/lr=0.03/{file}"));
        assert!(ours == bytes(format!("alone/{file}")), "{file}");
    }
    for key in ["loss", "eval_loss", "grad_norm", "tokens"] {
        let alone = training.series("alone", key);
        assert_eq!(training.series("exact/runs/lr=0.03", key), alone, "{key}");
        for ((step, ours), (other, alone)) in training.series("tasks/words", key).iter().zip(&alone)
        {
            assert!(step == other && (ours - alone).abs() <= 1e-5 * alone.abs(), "{key}, {step}");
        }
    }
    let record: Value = serde_json::from_str(&training.read("exact/runs.json")).unwrap();
    assert_eq!(record["best"], "lr=0.03");
    let steps =
        record["runs"].as_array().unwrap().iter().map(|run| run["stopped"]["step"].as_u64());
    let steps: Vec<Option<u64>> = steps.collect();
    assert!(steps[1].is_none() && steps[0].is_some() && steps[2].is_some() && steps[3].is_some());
    // But for rounding, with rows of others beside it.
    for (ours, alone) in [("tasks/words", "alone"), ("tasks/gold", "gold")] {
        let apart = apart(&training, ours, alone);
        assert!(apart < 1e-5, "{ours} is {apart:e} from {alone}");
    }
    assert_eq!(training.checkpoints("tasks/short").last(), Some(&3));
    assert_eq!(training.checkpoints("tasks/words").last(), Some(&8));
    let tokens = |task: &str| training.series(&format!("tasks/{task}"), "tokens")[0].1;
    assert!(tokens("short") > 1.5 * tokens("words"), "tasks of other sizes share no batches");
    // Rank 0 alone writes.
    assert_eq!(training.series("tasks/words", "loss").len(), 8);
}
