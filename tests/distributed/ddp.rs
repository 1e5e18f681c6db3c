//! Beside PEFT under torch's DistributedDataParallel, in Python: the same rows, the same weights.

use std::collections::BTreeMap;
use std::path::Path;

use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, DecoderConfig, Inputs, Load, Model, ModelConfig};
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::common::run_python;
use crate::launch::{free_port, group, OUT};
use crate::rank::join;

const RANKS: usize = 2;
const STEPS: i64 = 5;
const ROWS: i64 = 4;
const LENGTH: i64 = 12;
/// The labels of every row count, or of each row another number.
const WAYS: [&str; 2] = ["even", "uneven"];

type Found = BTreeMap<String, Tensor>;

fn read(path: &Path) -> Found {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

pub fn of_one_rank() {
    tch::set_num_threads(1);
    let out = std::path::PathBuf::from(std::env::var_os(OUT).unwrap());
    let dir = out.parent().unwrap();
    let (group, rows) = (join().unwrap(), read(&dir.join("rows")));
    let mut found = Vec::new();
    for way in WAYS {
        let (vs, model) =
            Decoder::from_pretrained_with(dir.join("model"), &Load::on(Device::Cpu)).unwrap();
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        let mut opt = tuned.optimizer(AdamW { wd: 0.1, ..Default::default() }, 1e-3).unwrap();
        opt.set_process_group(group.clone()).unwrap();
        let mut losses = Vec::new();
        for step in 0..STEPS {
            let own =
                |name: &str| rows[name].get(step).slice(0, group.rank() as i64, None, RANKS as i64);
            let (ids, labels) = (own("ids"), own(&format!("labels.{way}")));
            let targets = labels.slice(1, 1, None, 1).ge(0).sum(Kind::Int64).int64_value(&[]);
            let inputs = Inputs::new(&ids).train(true);
            let loss = model.loss(inputs, &labels, &LinearCrossEntropy::default()).unwrap();
            opt.zero_grad().unwrap();
            opt.backward(&loss).unwrap();
            let (loss, _) = opt.all_reduce(&loss, targets).unwrap();
            let _ = opt.clip_grad_norm(0.5).unwrap();
            opt.step().unwrap();
            losses.push(loss);
        }
        found.push((format!("{way}.losses"), Tensor::stack(&losses, 0)));
        for (key, weight) in tuned.state_dict("default").unwrap() {
            found.push((format!("{way}.{key}"), weight.copy()));
        }
    }
    Tensor::write_safetensors(&found, out).unwrap();
}

/// A llama of random weights, and rows of each step.
fn write(dir: &Path) {
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    });
    tch::manual_seed(1);
    let vs = VarStore::new(Device::Cpu);
    Decoder::new(&vs.root(), &DecoderConfig::from_value(&config).unwrap()).unwrap();
    // Larger weights than training begins with, so that gradients are no noise.
    tch::no_grad(|| {
        for (name, mut variable) in vs.variables() {
            if !name.contains("norm") {
                let _ = variable.normal_(0., 0.2);
            }
        }
    });
    ln_tuning::pretrained::save(&vs, dir.join("model"), &config.to_string()).unwrap();
    let ids = Tensor::randint(64, [STEPS, ROWS, LENGTH], (Kind::Int64, Device::Cpu));
    let place = Tensor::arange(LENGTH, (Kind::Int64, Device::Cpu));
    let row = Tensor::arange(ROWS, (Kind::Int64, Device::Cpu)).view([ROWS, 1]);
    // Rank 0 has rows of 3 and 5 tokens, rank 1 of 10 and 12.
    let counted = row.remainder(2) * 6 + &row + 3;
    let uneven = ids.masked_fill(&place.ge_tensor(&counted), -100);
    let rows = [
        ("ids", &ids),
        (&format!("labels.{}", WAYS[0]), &ids),
        (&format!("labels.{}", WAYS[1]), &uneven),
    ];
    Tensor::write_safetensors(&rows, dir.join("rows")).unwrap();
}

#[test]
fn two_ranks_learn_what_peft_learns_under_ddp_and_with_unequal_tokens_what_it_learns_in_one_process(
) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let ranks = group("ddp", RANKS, dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let words = [path("model"), path("rows"), path("theirs"), free_port().to_string()];
    run_python("ddp.py", &words.each_ref().map(String::as_str));
    let theirs = read(&dir.path().join("theirs"));
    let ours: Vec<Found> = ranks
        .into_iter()
        .map(|rank| {
            let out = rank.out().to_owned();
            rank.succeed();
            read(&out)
        })
        .collect();
    assert_eq!(ours[0], ours[1], "the ranks are not the same bit for bit");
    // Keys are PEFT's own.
    assert_eq!(2 * ours[0].len(), theirs.len());
    let differences = |way: &str, how: &str| {
        let of = |(key, own): (&String, &Tensor)| {
            let key = key.strip_prefix(&format!("{way}."))?;
            let other = &theirs[&format!("{way}.{how}.{key}")];
            Some((key == "losses", (own - other).abs().max().double_value(&[])))
        };
        let all: Vec<(bool, f64)> = ours[0].iter().filter_map(of).collect();
        let most = |losses| {
            all.iter().filter(|(is, _)| *is == losses).map(|(_, by)| *by).fold(0., f64::max)
        };
        assert_eq!(all.len(), 6);
        [most(true), most(false)]
    };
    for (way, how, same) in [
        ("even", "ddp", true),
        ("even", "one", true),
        ("uneven", "one", true),
        ("uneven", "ddp", false),
    ] {
        let [losses, weights] = differences(way, how);
        println!("{way}, {how}: losses {losses:.1e}, weights {weights:.1e}");
        if same {
            assert!(losses < 1e-5 && weights < 1e-5, "{way}, {how}: {losses}, {weights}");
        } else {
            // The mean of the ranks' means is another loss.
            assert!(losses > 1e-3 && weights > 1e-4, "{way}, {how}: {losses}, {weights}");
        }
    }
    let moved = ours[0].iter().filter(|(key, _)| !key.ends_with("losses"));
    let moved = moved.map(|(_, weight)| (weight - 1.).abs().max().double_value(&[]));
    assert!(moved.fold(f64::INFINITY, f64::min) > 1e-3, "every norm has learnt");
}
