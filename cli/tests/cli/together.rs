//! Rows of several runs go through the model together only where each run ends as it would alone.

use std::process::{Child, Command};

use serde_json::{json, Value};

use crate::program::{texts, Training};
use crate::{model, training};

/// A sweep of two runs, which are each trained alone as well.
struct Case {
    name: &'static str,
    family: &'static str,
    /// Changes of config.json.
    config: Value,
    set: &'static [&'static str],
    sweep: &'static str,
    /// The settings of the runs alone, each with the name of the run.
    runs: [(&'static str, &'static str); 2],
    /// The distance of losses from those of a run alone; 0 where rows go alone, for the reason after it.
    apart: (f64, &'static str),
}

const RATES: [(&str, &str); 2] =
    [("lr=0.001", "optimizer.lr=0.001"), ("lr=0.03", "optimizer.lr=0.03")];
const SEEDS: [(&str, &str); 2] = [("seed=0", "seed=0"), ("seed=5", "seed=5")];

fn cases() -> Vec<Case> {
    let case = |name, set, apart| Case {
        name,
        family: "llama",
        config: json!({}),
        set,
        sweep: "optimizer.lr=0.001,0.03",
        runs: RATES,
        apart: (apart, ""),
    };
    vec![
        case("bf16", &["kind=bf16"], 2e-2),
        case("f16", &["kind=f16", "loss_scale=1024"], 2e-2),
        case("in 8 bits", &["base=int8"], 1e-5),
        case("in 4 bits, with some blocks computed twice", &["base=nf4", "checkpointing=2"], 1e-5),
        case("block by block", &["base=streamed", "accumulation=2", "batch_size=2"], 1e-5),
        Case {
            config: json!({"attention_dropout": 0.1}),
            apart: (0., "the model has dropout"),
            ..case("with dropout", &[], 0.)
        },
        // Rows of 20 to 40 places, some with the angles of more than 32.
        Case {
            config: json!({
                "max_position_embeddings": 32, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
            }),
            sweep: "seed=0,5",
            runs: SEEDS,
            ..case("with angles that depend on the longest row", &["data.packing=false"], 1e-5)
        },
        Case {
            family: "gpt2",
            sweep: "batch_size=2,3",
            runs: [("batch_size=2", "batch_size=2"), ("batch_size=3", "batch_size=3")],
            ..case(
                "batches of other sizes",
                &["data.packing=false", "schedule.name=constant"],
                1e-5,
            )
        },
        Case {
            sweep: "max_steps=2,4",
            runs: [("max_steps=2", "max_steps=2"), ("max_steps=4", "max_steps=4")],
            ..case("more steps", &["eval_interval=2", "data.eval_fraction=0.2"], 1e-5)
        },
        Case {
            apart: (0., "each has as many tokens as are computed fast"),
            ..case("as many tokens as one run fills the model with", &["batch_size=20"], 0.)
        },
    ]
}

impl Case {
    /// The same model with these settings.
    fn training(&self) -> Training {
        let mut training = training().set(&["max_steps=4"]).set(self.set);
        let files = std::fs::read_dir(model(self.family)).unwrap();
        std::fs::create_dir(training.path("model")).unwrap();
        for file in files {
            let file = file.unwrap().path();
            let copy = training.path("model").join(file.file_name().unwrap());
            std::fs::copy(&file, &copy).unwrap();
        }
        let text = training.read("model/config.json");
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config.as_object_mut().unwrap().extend(self.config.as_object().unwrap().clone());
        training.write("model/config.json", &config.to_string());
        training.settings[0] = "model=model".to_owned();
        training
    }
}

fn started(mut command: Command) -> Child {
    command.spawn().unwrap()
}

#[test]
fn runs_that_share_the_model_end_as_alone_whatever_the_base_and_the_batches_are() {
    for case in cases() {
        let training = case.training();
        let mut sweep = training.command(&["out=sweep"]);
        sweep.args(["--sweep", case.sweep]);
        let alone = case.runs.map(|(run, set)| training.command(&[set, &format!("out={run}")]));
        let all: Vec<Child> = std::iter::once(sweep).chain(alone).map(started).collect();
        let mut printed = Vec::new();
        for child in all {
            let output = child.wait_with_output().unwrap();
            let (out, err) = texts(&output);
            assert!(output.status.success(), "{}: {out}\n{err}", case.name);
            printed.push(out);
        }
        let (apart, reason) = case.apart;
        let way = if reason.is_empty() { "go through the model together" } else { reason };
        assert!(printed[0].contains(way), "{}: {}", case.name, printed[0]);
        for (run, _) in case.runs {
            for key in ["loss", "eval_loss"] {
                let ours = training.series(&format!("sweep/runs/{run}"), key);
                let theirs = training.series(run, key);
                assert_eq!(ours.len(), theirs.len(), "{}", case.name);
                for ((step, ours), (_, alone)) in ours.into_iter().zip(theirs) {
                    let off = (ours - alone).abs() / alone;
                    assert!(off <= apart, "{}, {run}, step {step}: {ours} {alone}", case.name);
                }
            }
        }
    }
}
