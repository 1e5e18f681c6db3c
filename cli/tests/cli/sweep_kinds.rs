//! Sweeps of models and data of every kind: each run ends as it would alone.

use std::process::Child;

use crate::program::{printed, text, texts, Training};
use crate::{classifier, model, pictures_train, training};

struct Case {
    name: &'static str,
    training: Training,
    sweep: &'static str,
    /// The settings of the two runs, which are their names.
    runs: [&'static str; 2],
    /// The distance of losses from those of a run alone; 0: all is equal to the bit.
    apart: f64,
    /// The words about the way.
    says: &'static str,
}

const SEEDS: [&str; 2] = ["seed=0", "seed=7"];
const HEAD: &str =
    "one run after the other in each step: 'classifier.weight' trains, and only vectors";

fn cases() -> Vec<Case> {
    let few = ["max_steps=4", "eval_interval=2", "data.eval_fraction=0.25"];
    let texts = classifier::training("bert").set(&few).set(&["data.train=train.csv"]);
    texts.write("train.csv", &classifier::csv(&classifier::rows(32), ["10 foxes", "9 pennies"]));
    let images = classifier::training("vit").set(&few).set(&["data.train=images"]);
    classifier::images(&images);
    let pictures = pictures_train::training("llava").set(&few[..2]);
    let pictures = pictures.set(&["recipe=layernorm-simple", "data.max_length=96"]);
    let mut blocks = training().set(&few).set(&["base=gguf"]);
    blocks.settings[0] = "model=model.gguf".to_owned();
    let file = blocks.path("model.gguf");
    printed(&["merge", "--base", text(&model("llama")), "--out", text(&file), "--type", "q8_0"]);
    let case = |name, training, says| Case {
        name,
        training,
        sweep: "seed=0,7",
        runs: SEEDS,
        apart: 0.,
        says,
    };
    vec![
        case("a new head, whose first weights follow from the seed", texts, HEAD),
        Case {
            sweep: "optimizer.lr=0.01,0.1",
            runs: ["optimizer.lr=0.01", "optimizer.lr=0.1"],
            ..case("folders of pictures", images, HEAD)
        },
        case(
            "rows with pictures, packed",
            pictures,
            "rows with pictures go through the model by themselves",
        ),
        Case { apart: 1e-5, ..case("blocks of GGUF", blocks, "go through the model together") },
    ]
}

#[test]
fn each_run_ends_as_alone_whatever_the_model_and_the_data_are() {
    for Case { name, training, sweep, runs, apart, says } in cases() {
        let mut all = training.command(&["out=sweep"]);
        all.args(["--sweep", sweep, "--keep-all"]);
        let alone = runs.map(|set| training.command(&[set, &format!("out={set}")]));
        let all: Vec<Child> =
            std::iter::once(all).chain(alone).map(|mut run| run.spawn().unwrap()).collect();
        for (at, child) in all.into_iter().enumerate() {
            let output = child.wait_with_output().unwrap();
            let (out, err) = texts(&output);
            assert!(output.status.success(), "{name}: {out}\n{err}");
            assert!(at > 0 || out.contains(says), "{name}: {out}");
        }
        for set in runs {
            // The name of a run leaves out what is above a key.
            let run = format!("sweep/runs/{}", set.trim_start_matches("optimizer."));
            for key in ["loss", "grad_norm", "eval_loss", "lr"] {
                let (ours, theirs) = (training.series(&run, key), training.series(set, key));
                assert_eq!(ours.len(), theirs.len(), "{name}, {key}");
                let apart = if key == "grad_norm" { 100. * apart } else { apart };
                for ((step, ours), (_, alone)) in ours.into_iter().zip(theirs) {
                    let off = (ours - alone).abs();
                    assert!(
                        off <= apart * alone,
                        "{name}, {set}, {key}, step {step}: {ours} {alone}"
                    );
                }
            }
            let file = |out: &str, file: &str| {
                std::fs::read(training.path(&format!("{out}/adapter/{file}"))).unwrap()
            };
            assert!(
                file(&run, "adapter_config.json") == file(set, "adapter_config.json"),
                "{name}"
            );
            let weights = |out: &str| file(out, "adapter_model.safetensors");
            assert!(apart > 0. || weights(&run) == weights(set), "{name}, {set}");
        }
    }
}
