//! Rows of several adapters: fused norms take a weight for each row, so that little more is launched than for one adapter.

use ln_tuning::device::best_device;
use ln_tuning::loss::{LinearCrossEntropy, Reduction};
use ln_tuning::models::{Decoder, GenerateOptions, Inputs};
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel, Optimizer};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::counting::{self, Counts, Gpu};
use crate::generation::four_tokens;
use crate::training_step::{built, sent};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// RMSNorm, RMSNorm of heads too, from one, and LayerNorm with biases.
fn configs(layers: i64) -> [Value; 4] {
    let base = json!({
        "vocab_size": 512, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": layers,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 64,
        "n_embd": 512, "n_layer": layers, "n_head": 8, "n_positions": 64, "tie_word_embeddings": true,
    });
    ["llama", "qwen3", "gemma", "gpt2"].map(|family| {
        let mut config = base.clone();
        config["model_type"] = family.into();
        config
    })
}

fn attached(config: &Value, kind: Kind) -> (VarStore, Decoder, LnTuningModel) {
    let (vs, model) = built::<Decoder>(config, kind, best_device());
    // All norms.
    let tuning = LnTuningConfig::default;
    let mut tuned = LnTuningModel::with_adapter_name(&vs, tuning(), NAMES[0]).unwrap();
    NAMES[1..].iter().for_each(|name| tuned.add_adapter(name, tuning()).unwrap());
    (vs, model, tuned)
}

fn gpu() -> Gpu {
    // The base is looked at again and again.
    Gpu { fill: Some(0), ..Gpu::default() }
}

#[test]
fn a_token_of_a_mixed_batch_takes_the_launches_of_one_adapter() {
    gpu().run(|| {
        for (config, kind) in
            configs(2).iter().flat_map(|c| [Kind::BFloat16, Kind::Float].map(|k| (c, k)))
        {
            let (_vs, model, _tuned) = attached(config, kind);
            let ids = Tensor::zeros([3, 9], (Kind::Int64, best_device()));
            let options = GenerateOptions::default().stop_tokens([]);
            let [one, mixed] = [&[][..], &NAMES].map(|names| {
                let mut inputs = Inputs::new(&ids);
                if !names.is_empty() {
                    inputs = inputs.adapter_names(names);
                }
                four_tokens(|tokens| {
                    model.generate(inputs, &options.clone().max_new_tokens(tokens))
                })
            });
            let what = format!("{kind:?}, {config}");
            let of_four = |[two, six]: &[Counts; 2]| six.launches - two.launches;
            assert_eq!(of_four(&mixed), of_four(&one), "{what}: {:?}", mixed[1].kernels);
            // The weights that are gathered for the whole text.
            let more = mixed[0].launches - one[0].launches;
            assert!(more <= 4, "{what}: {more} launches more for a prompt: {:?}", mixed[0].kernels);
            let norms = |counts: &Counts| counts.kernels_with("ln_tuning_norm_");
            assert!(norms(&one[0]) > 0, "{what}");
            assert_eq!(norms(&mixed[0]), norms(&one[0]), "{what}");
        }
    });
}

/// Forward and backward.
fn step(config: &Value, names: &[&str]) -> [Counts; 2] {
    let (_vs, model, tuned) = attached(config, Kind::BFloat16);
    let labels = Tensor::ones([3, 9], (Kind::Int64, Device::Cpu));
    let ids = sent(&labels, best_device());
    let mut optimizers: Vec<Optimizer> = names
        .iter()
        .map(|name| tuned.optimizer_for(name, AdamW::default(), 1e-3).unwrap())
        .collect();
    let one = names.is_empty();
    let mut alone = one.then(|| tuned.optimizer(AdamW::default(), 1e-3).unwrap());
    let mut step = || {
        optimizers.iter_mut().chain(&mut alone).for_each(|own| own.zero_grad().unwrap());
        counting::reset();
        let mut inputs = Inputs::new(&ids).train(true);
        let mut loss = LinearCrossEntropy::default();
        if !one {
            inputs = inputs.adapter_names(names);
            loss = loss.reduction(Reduction::SumPerRow);
        }
        let loss = model.loss(inputs, &labels, &loss).unwrap();
        let forward = counting::counts();
        counting::reset();
        match &mut alone {
            Some(optimizer) => optimizer.backward(&loss).unwrap(),
            None => Optimizer::backward_mixed(&mut optimizers, &loss.sum(Kind::Float)).unwrap(),
        }
        [forward, counting::counts()]
    };
    let _ = step();
    step()
}

#[test]
fn a_layer_of_a_mixed_training_step_takes_the_launches_of_one_adapter() {
    gpu().run(|| {
        for (two, four) in configs(2).iter().zip(&configs(4)).step_by(3) {
            let of_layer = |names: &[&str]| {
                let [two, four] = [two, four].map(|config| step(config, names));
                [0, 1].map(|pass| (four[pass].launches - two[pass].launches) / 2)
            };
            let (one, mixed) = (of_layer(&[]), of_layer(&NAMES));
            assert!(mixed[0] <= one[0], "{mixed:?}, {one:?} of one: {two}");
            assert!(mixed[1] <= one[1], "{mixed:?}, {one:?} of one: {two}");
        }
    });
}
