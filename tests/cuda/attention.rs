//! Attention on CUDA: a fused kernel for every model, mask, kind and card; cuDNN and determinism as the user wants.

use ln_tuning::device::{best_device, set_cudnn_attention, set_deterministic};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, DecoderConfig, GenerateOptions, Inputs, Model, ModelConfig};
use ln_tuning::{AdamW, GraphedStep, LnTuningConfig, LnTuningModel};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::counting::{self, Counts, Gpu};

const KINDS: [Kind; 3] = [Kind::BFloat16, Kind::Half, Kind::Float];
const LAYERS: u64 = 2;

/// A model with four heads of queries of this size.
fn config(family: &str, kv_heads: i64, head_dim: i64) -> Value {
    json!({
        "model_type": family, "vocab_size": 40, "hidden_size": 4 * head_dim, "intermediate_size": 64,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "sliding_window": 20, "use_sliding_window": true,
        "max_window_layers": 1, "n_layer": LAYERS, "n_head": 4, "alibi": true, "multi_query": kv_heads == 1,
        "new_decoder_architecture": false,
    })
}

/// A step forward and backward, and what it takes the second time.
fn step(config: &Value, kind: Kind, form: &str, length: i64) -> Counts {
    let device = best_device();
    let mut vs = VarStore::new(device);
    vs.set_kind(kind);
    let model = Decoder::new(&vs.root(), &DecoderConfig::from_value(config).unwrap()).unwrap();
    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
    let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
    let ids = Tensor::zeros([2, length], (Kind::Int64, device));
    let ones = ids.ones_like();
    let loss = LinearCrossEntropy::default();
    for _ in 0..2 {
        counting::reset();
        let inputs = Inputs::new(&ids).train(true);
        let inputs = match form {
            "padded" => inputs.attention_mask(&ones),
            "packed" => inputs.documents(&ids),
            _ => inputs,
        };
        optimizer.backward_step(&model.loss(inputs, &ids, &loss).unwrap()).unwrap();
    }
    counting::counts()
}

fn takes_fused_kernels(kinds: [Kind; 3]) {
    let models = [
        config("llama", 2, 16),
        config("llama", 1, 64),
        config("llama", 4, 80),
        config("llama", 2, 96),
        config("llama", 2, 128),
        config("llama", 2, 256),
        config("mistral", 2, 16),
        config("qwen2", 2, 16),
        config("gemma3_text", 1, 256),
        config("bloom", 4, 16),
        config("falcon", 1, 64),
    ];
    for (model, length) in models.iter().flat_map(|model| [(model, 64), (model, 77)]) {
        for (kind, form) in
            kinds.iter().flat_map(|kind| ["plain", "padded", "packed"].map(|form| (*kind, form)))
        {
            let counts = step(model, kind, form, length);
            let what = format!("{form}, {length}, {kind:?}, {model}: {:?}", counts.kernels);
            let of = |names: &[&str]| names.iter().map(|name| counts.kernels_with(name)).sum();
            // Keys of one head may be shared out among several blocks.
            let forward: u64 =
                of(&["flash_fwd_kernel", "flash_fwd_splitkv_kernel", "fmha_cutlassF"]);
            let backward: u64 = of(&["flash_bwd_dq_dk_dv", "fmha_cutlassB"]);
            assert_eq!((forward, backward), (LAYERS, LAYERS), "{what}");
            assert_eq!(counts.calls_with("Batched"), 0, "{what}");
        }
    }
}

#[test]
fn takes_fused_kernels_on_ampere() {
    Gpu { sm: 80, ..Gpu::default() }.run(|| takes_fused_kernels(KINDS));
}

#[test]
fn takes_fused_kernels_on_ada() {
    Gpu { sm: 89, ..Gpu::default() }.run(|| takes_fused_kernels(KINDS));
}

#[test]
fn takes_fused_kernels_on_hopper() {
    Gpu { sm: 90, ..Gpu::default() }.run(|| takes_fused_kernels(KINDS));
}

/// The kernel that libtorch takes for queries of a plain decoder.
fn choice() -> &'static str {
    let q = Tensor::zeros([2, 4, 64, 64], (Kind::BFloat16, Device::Cuda(0)));
    let none = None::<&Tensor>;
    match Tensor::internal_fused_sdp_choice(&q, &q, &q, none, 0., true, None, false) {
        0 => "math",
        1 => "flash",
        2 => "efficient",
        3 => "cudnn",
        _ => "another",
    }
}

#[test]
fn cudnn_is_out_of_the_way_and_can_be_asked_for_at_any_time() {
    Gpu::default().run(|| {
        best_device();
        assert_eq!(choice(), "flash");
        set_cudnn_attention(true).unwrap();
        assert_eq!(choice(), "cudnn");
        set_cudnn_attention(false).unwrap();
        assert_eq!(choice(), "flash");
    });
}

#[test]
fn cudnn_that_is_asked_for_first_stays() {
    Gpu::default().run(|| {
        set_cudnn_attention(true).unwrap();
        best_device();
        assert_eq!(choice(), "cudnn");
    });
}

#[test]
fn libtorchs_own_variable_for_cudnn_is_followed() {
    Gpu::default().run(|| {
        std::env::set_var("TORCH_CUDNN_SDPA_DEPRIORITIZED", "0");
        best_device();
        assert_eq!(choice(), "cudnn");
    });
}

#[test]
fn a_deterministic_step_computes_attention_in_a_fixed_order_and_nothing_else_refuses() {
    Gpu::default().run(|| {
        let device = best_device();
        let llama = config("llama", 2, 64);
        let fills =
            |counts: &Counts| counts.kernels_with("FillFunctor") + counts.calls_with("cudaMemset");
        let free = step(&llama, Kind::BFloat16, "plain", 64);
        set_deterministic(true).unwrap();
        let fixed = step(&llama, Kind::BFloat16, "plain", 64);
        // Sums of parts that are kept apart begin at zero; others are added where they stand.
        assert!(fills(&fixed) > fills(&free), "{:?}\n{:?}", free.kernels, fixed.kernels);
        for (model, form) in
            ["llama", "mistral", "gemma2", "bloom", "gpt2"].iter().flat_map(|family| {
                ["plain", "padded", "packed"].map(|form| (config(family, 4, 16), form))
            })
        {
            KINDS.iter().for_each(|kind| drop(step(&model, *kind, form, 77)));
        }
        let vs = VarStore::new(device);
        let model = Decoder::new(&vs.root(), &DecoderConfig::from_value(&llama).unwrap()).unwrap();
        let ids = Tensor::zeros([2, 5], (Kind::Int64, device));
        let options = GenerateOptions::default().max_new_tokens(3).repetition_penalty(1.2);
        for options in [options.clone(), options.temperature(0.8).top_p(0.9)] {
            drop(model.generate(&ids, &options).unwrap());
        }
    });
}

#[test]
fn a_step_that_is_captured_takes_flash_where_cudnn_has_no_plan() {
    Gpu::default().run(|| {
        let device = best_device();
        // Plans are for the longer ones.
        for length in [128, 256] {
            let mut vs = VarStore::new(device);
            vs.set_kind(Kind::BFloat16);
            let mut config = config("llama", 2, 64);
            config["max_position_embeddings"] = json!(length);
            let model =
                Decoder::new(&vs.root(), &DecoderConfig::from_value(&config).unwrap()).unwrap();
            let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
            let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
            let ids = Tensor::zeros([2, length], (Kind::Int64, device));
            let loss = LinearCrossEntropy::default();
            let mut graphed = GraphedStep::default();
            counting::reset();
            for at in 0..4 {
                let stepped = graphed.run(&mut optimizer, &[&ids], |inputs| {
                    model.loss(Inputs::new(&inputs[0]).train(true), &inputs[0], &loss)
                });
                assert_eq!(stepped.unwrap().replayed, at >= 2);
            }
            let counts = counting::counts();
            // Two steps one by one; the third is captured. The counting runtime has no cuDNN.
            let forward = counts.kernels_with("flash_fwd_kernel");
            assert_eq!(forward, 2 * LAYERS, "{length}: {:?}", counts.kernels);
            assert_eq!(graphed.without_graph(), None);
        }
    });
}
