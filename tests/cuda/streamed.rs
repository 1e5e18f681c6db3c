//! Blocks that come from the host: on a stream of their own, in two places, in order, and nothing waits for them.

use ln_tuning::device::best_device;
use ln_tuning::loss::{LinearCrossEntropy, Reduction};
use ln_tuning::models::{
    Decoder, DecoderConfig, GenerateOptions, Inputs, Load, Model, ModelConfig,
};
use ln_tuning::recompute::Recompute;
use ln_tuning::{pretrained, AdamW, ErrorKind, LnTuningConfig, LnTuningModel};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::counting::{self, Counts, Gpu};
use crate::training_step::sent;

const LAYERS: i64 = 8;

/// A llama whose blocks have one tile of 14 MB each.
fn config() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 64, "hidden_size": 768, "intermediate_size": 2048,
        "num_hidden_layers": LAYERS, "num_attention_heads": 12, "num_key_value_heads": 12, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "architectures": ["LlamaForCausalLM"],
    })
}

fn block_bytes() -> u64 {
    2 * (4 * 768 * 768 + 3 * 768 * 2048)
}

fn saved() -> tempfile::TempDir {
    let mut vs = VarStore::new(Device::Cpu);
    vs.set_kind(Kind::BFloat16);
    Decoder::new(&vs.root(), &DecoderConfig::from_value(&config()).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    pretrained::save(&vs, dir.path(), &config().to_string()).unwrap();
    dir
}

fn loaded(dir: &tempfile::TempDir, base: &str) -> (VarStore, Decoder) {
    let load = Load::on(best_device()).frozen(base.parse().unwrap());
    Decoder::from_pretrained_with(dir.path(), &load).unwrap()
}

fn fetched(counts: &Counts) -> u64 {
    counts.calls_with("order: a copy beside the default stream")
}

/// Nothing waits, and nothing is read too early or written too early.
fn is_in_order(what: &str, counts: &Counts) {
    assert_eq!(counts.synchronisations, 0, "{what}: {:?}", counts.calls);
    assert_eq!(counts.pageable_copies, 0, "{what}: {:?}", counts.calls);
    for fault in [
        "a product before its copy is there",
        "a copy over what may still be read",
        "a copy over another that may still run",
        "a copy on a stream that waits for the default one",
    ] {
        assert_eq!(counts.calls_with(fault), 0, "{what}: {fault}");
    }
}

#[test]
fn a_step_fetches_each_block_once_in_each_pass_in_order_and_waits_for_nothing() {
    Gpu::default().run(|| {
        let dir = saved();
        counting::reset();
        let (vs, model) = loaded(&dir, "streamed");
        let counts = counting::counts();
        assert_eq!(counts.calls_with("cudaHostRegister"), LAYERS as u64);
        let held = counts.devices[0].peak;
        // Of 113 MB.
        assert!(held <= 2 * block_bytes() + (6 << 20), "{held}");
        let name = "model.layers.3.mlp.up_proj.weight";
        assert_eq!(vs.variables()[name].device(), Device::Cpu);

        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        let mut opt = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
        let labels: Vec<Tensor> =
            (0..3).map(|_| Tensor::ones([2, 9], (Kind::Int64, Device::Cpu))).collect();
        let ids: Vec<Tensor> = labels.iter().map(|ids| sent(ids, best_device())).collect();
        let batches: Vec<(Inputs, &Tensor)> =
            ids.iter().zip(&labels).map(|(ids, labels)| (Inputs::new(ids), labels)).collect();
        let loss = LinearCrossEntropy::default().reduction(Reduction::SumOver(48));
        for step in 0..4 {
            counting::reset();
            opt.zero_grad().unwrap();
            let losses = opt.backward_recompute_many(&Recompute::default(), |tape| {
                model.losses_with(&batches, &loss, tape)
            });
            assert_eq!(losses.unwrap().len(), 3);
            let _ = opt.clip_grad_norm(1.).unwrap();
            opt.step().unwrap();
            let counts = counting::counts();
            // Forward all blocks, of which the last two stay for the way back, and then the first two.
            let expected = if step == 0 { 2 * LAYERS - 2 } else { 2 * LAYERS - 4 };
            assert_eq!(fetched(&counts), expected as u64, "{:?}", counts.calls);
            assert!(counts.calls_with("what came beside the default stream") > 0);
            if step > 0 {
                is_in_order(&format!("step {step}"), &counts);
            }
        }

        let error = model.loss(&ids[0], &labels[0], &LinearCrossEntropy::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidState);
        assert!(error.to_string().contains("Recompute"), "{error}");

        // Batch by batch, the same order holds.
        for _ in 0..2 {
            counting::reset();
            for (inputs, labels) in &batches {
                let backward = opt.backward_recompute(&Recompute::default(), |tape| {
                    model.loss_with(*inputs, labels, &loss, tape)
                });
                assert!(backward.is_ok());
            }
            let counts = counting::counts();
            assert_eq!(fetched(&counts), 3 * (2 * LAYERS as u64 - 4));
            is_in_order("batch by batch", &counts);
        }

        counting::reset();
        let options = GenerateOptions::default().max_new_tokens(4);
        let _ = model.generate(&ids[0], &options).unwrap();
        let counts = counting::counts();
        for fault in ["before its copy is there", "may still"] {
            assert_eq!(counts.calls_with(fault), 0, "{:?}", counts.calls);
        }

        // The model ends: memory is no longer pinned, and variables are those of the host.
        counting::reset();
        drop(model);
        assert_eq!(counting::counts().calls_with("cudaHostUnregister"), LAYERS as u64);
        assert!(vs
            .variables()
            .iter()
            .filter(|(name, _)| name.contains("_proj"))
            .all(|(_, variable)| variable.device() == Device::Cpu
                && variable.kind() == Kind::BFloat16));
    });
}

#[test]
fn blocks_in_few_bits_travel_so_and_what_replaces_a_matrix_is_refused() {
    Gpu { devices: 2, ..Gpu::default() }.run(|| {
        let dir = saved();
        for base in ["streamed, int8", "streamed, nf4"] {
            let (vs, model) = loaded(&dir, base);
            let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
            let mut opt = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
            let labels = Tensor::ones([2, 9], (Kind::Int64, Device::Cpu));
            let ids = sent(&labels, best_device());
            let loss = LinearCrossEntropy::default();
            for _ in 0..3 {
                counting::reset();
                let backward = opt.backward_recompute(&Recompute::default(), |tape| {
                    model.loss_with(&ids, &labels, &loss, tape)
                });
                assert!(backward.is_ok());
                opt.step().unwrap();
            }
            let counts = counting::counts();
            assert_eq!(fetched(&counts), 2 * LAYERS as u64 - 4, "{base}");
            is_in_order(base, &counts);
            counting::only_device(0);
        }
        // Memory that cannot be pinned where it is, is copied to memory that can.
        std::env::set_var("COUNTING_PINS", "0");
        counting::reset();
        let (vs, model) = loaded(&dir, "streamed");
        let ids = sent(&Tensor::ones([1, 4], (Kind::Int64, Device::Cpu)), best_device());
        let pass = || tch::no_grad(|| drop(model.logits(&ids).unwrap()));
        pass();
        assert_eq!(counting::counts().calls_with("cudaHostRegister"), 0);
        counting::reset();
        pass();
        is_in_order("pinned copies", &counting::counts());
        let name = "model.layers.2.mlp.up_proj.weight";
        let mut variable = vs.variables()[name].shallow_clone();
        variable.set_data(&variable.copy());
        let error = model.logits(&ids).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BaseChanged);
        assert!(error.to_string().contains(name), "{error}");
    });
}

#[test]
fn blocks_that_are_resident_are_never_fetched_and_the_others_come_as_always() {
    Gpu::default().run(|| {
        let dir = saved();
        counting::reset();
        let (vs, model) = loaded(&dir, "streamed, resident 0.5");
        let (streamed, counts) = (LAYERS as u64 / 2, counting::counts());
        assert_eq!(counts.calls_with("cudaHostRegister"), streamed);
        // Half of the blocks, in pieces of 20 MiB, and places for two.
        let held = counts.devices[0].peak;
        assert!(held <= (streamed + 2) * block_bytes() + (12 << 20), "{held}");
        let device = |layer: i64| {
            vs.variables()[&format!("model.layers.{layer}.mlp.up_proj.weight")].device()
        };
        let on_host = (0..LAYERS).filter(|layer| device(*layer) == Device::Cpu).count();
        assert_eq!(on_host as u64, streamed);
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        let mut opt = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
        let labels = Tensor::ones([2, 9], (Kind::Int64, Device::Cpu));
        let ids = sent(&labels, best_device());
        let loss = LinearCrossEntropy::default();
        for step in 0..3 {
            counting::reset();
            opt.zero_grad().unwrap();
            let backward = opt.backward_recompute(&Recompute::default(), |tape| {
                model.loss_with(&ids, &labels, &loss, tape)
            });
            assert!(backward.is_ok());
            opt.step().unwrap();
            let counts = counting::counts();
            let expected = if step == 0 { 2 * streamed - 2 } else { 2 * streamed - 4 };
            assert_eq!(fetched(&counts), expected, "{:?}", counts.calls);
            if step > 0 {
                is_in_order(&format!("step {step}"), &counts);
            }
        }
    });
}
