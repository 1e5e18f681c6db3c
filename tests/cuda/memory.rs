//! Memory of the device: how much is taken for what, and what happens where it is not enough.

use ln_tuning::device::{best_device, memory_info};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, DecoderConfig, GenerateOptions, Inputs, Model, ModelConfig};
use ln_tuning::recompute::Recompute;
use ln_tuning::{pretrained, AdamW, ErrorKind, LnTuningConfig, Result};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::counting::{self, Gpu};
use crate::llama::Llama;

const MEGABYTE: u64 = 1_000_000;

/// Bytes that libtorch takes from the device while `f` runs, beyond what it had.
fn taken<T>(f: impl FnOnce() -> T) -> (T, u64) {
    counting::reset();
    let before = counting::counts().devices[0].reserved;
    let result = f();
    (result, counting::counts().devices[0].peak - before)
}

fn reserved() -> u64 {
    counting::counts().devices[0].reserved
}

impl Llama {
    fn loss(&self, batch: i64, length: i64, documents: bool) -> Result<Tensor> {
        let places = Tensor::arange(length, (Kind::Int64, Device::Cpu));
        let documents = documents.then(|| {
            let documents = places.divide_scalar_mode(300, "floor").expand([batch, length], true);
            documents.contiguous().to_device(best_device())
        });
        let labels = places.zeros_like().expand([batch, length], true).contiguous();
        let ids = labels.to_device(best_device());
        let inputs = Inputs::new(&ids).documents(documents.as_ref()).train(true);
        self.model.loss(inputs, &labels, &LinearCrossEntropy::default())
    }

    fn step(&mut self, batch: i64, length: i64, documents: bool) -> Result<()> {
        let loss = self.loss(batch, length, documents)?;
        self.opt.backward_step_clip_norm(&loss, 1.)
    }

    fn recomputed(&mut self, batch: i64, length: i64) -> Result<()> {
        let ids = Tensor::zeros([batch, length], (Kind::Int64, best_device()));
        let Llama { model, opt, .. } = self;
        let loss = opt.backward_recompute(&Recompute::default(), |tape| {
            model.loss_with(&ids, &ids, &LinearCrossEntropy::default(), tape)
        });
        loss.map(drop)
    }
}

/// Gigabytes of the weights and of two steps, at most.
fn gigabytes(kind: Kind, step: impl Fn(&mut Llama) -> Result<()>) -> f64 {
    let (_, bytes) = taken(|| {
        let mut llama = Llama::new(28, kind);
        (0..2).for_each(|_| step(&mut llama).unwrap());
    });
    bytes as f64 / 1e9
}

/// A plain step takes 14.1. A mask needs queries in groups, in a copy beside the one that they share with the keys.
const PACKED: f64 = 14.2;

#[test]
fn a_packed_step_of_3b_takes_little_more_than_a_plain_one_on_hopper() {
    Gpu::default().run(|| {
        let taken = gigabytes(Kind::BFloat16, |llama| llama.step(4, 768, true));
        assert!(taken <= PACKED, "{taken} GB");
    });
}

#[test]
fn a_packed_step_of_3b_takes_little_more_than_a_plain_one_on_ampere() {
    Gpu { sm: 80, ..Gpu::default() }.run(|| {
        let taken = gigabytes(Kind::BFloat16, |llama| llama.step(4, 768, true));
        assert!(taken <= PACKED, "{taken} GB");
    });
}

#[test]
fn a_step_of_3b_in_f32_takes_little_more_than_twice_one_in_bf16() {
    Gpu::default().run(|| {
        let taken = gigabytes(Kind::Float, |llama| llama.step(4, 768, false));
        assert!(taken <= 29.5, "{taken} GB");
        let recomputed = gigabytes(Kind::Float, |llama| llama.recomputed(4, 768));
        assert!(recomputed <= 16., "recomputed: {recomputed} GB");
    });
}

#[test]
fn free_memory_is_the_devices_and_asking_touches_no_other_device() {
    Gpu { devices: 2, memory: 8 << 30, ..Gpu::default() }.run(|| {
        let before = memory_info(Device::Cuda(1)).unwrap();
        assert_eq!((before.free, before.total), (8 << 30, 8 << 30));
        let _held = Tensor::zeros([1 << 30], (Kind::Uint8, Device::Cuda(1)));
        let after = memory_info(Device::Cuda(1)).unwrap();
        assert_eq!((after.free, after.total), (7 << 30, 8 << 30));
        assert_eq!(after.to_string(), "7.00 GiB free of 8.00 GiB");
        assert_eq!(memory_info(Device::Cuda(0)).unwrap(), before);
        let error = memory_info(Device::Cuda(2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("cuda:0 to cuda:1"), "{error}");
        let counts = counting::counts();
        assert_eq!((counts.devices[0].reserved, counts.synchronisations), (0, 0));
    });
}

/// The error of something for which memory is not enough.
fn lacks_memory<T>(what: &str, result: Result<T>) {
    let Err(error) = result else { panic!("{what}: memory was enough") };
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{what}: {error}");
    let text = error.to_string();
    for part in ["were asked for on cuda:0, where ", " are free of ", "Recompute", "batches"] {
        assert!(text.contains(part), "{what}: {text}");
    }
}

#[test]
fn a_step_that_memory_is_not_enough_for_is_an_error_and_a_smaller_one_goes_on() {
    Gpu::default().run(|| {
        let mut llama = Llama::new(2, Kind::BFloat16);
        llama.opt.set_accumulation(2).unwrap();
        llama.step(1, 256, false).unwrap();
        let gradients = |llama: &mut Llama| {
            let named = llama.opt.gradients().unwrap().into_iter();
            named.map(|(name, gradient)| (name, gradient.map(|g| g.size()))).collect::<Vec<_>>()
        };
        let (before, held) = (gradients(&mut llama), reserved());
        // The memory of a micro-batch is free again: enough for another one.
        counting::limit_memory(Some(held + 64 * MEGABYTE));
        lacks_memory("a whole step", llama.step(8, 768, false));
        lacks_memory("recomputed", llama.recomputed(32, 768));
        counting::limit_memory(None);
        let loss = llama.loss(2, 512, false).unwrap();
        counting::limit_memory(Some(reserved()));
        let hungry = loss.f_expand([1 << 34], false).unwrap().f_select(0, 0).unwrap();
        lacks_memory("the backward pass", llama.opt.backward(&hungry));
        drop((loss, hungry));
        assert!(gradients(&mut llama) == before, "gradients are kept");
        llama.step(1, 256, false).unwrap();
        // Nothing of what failed is held.
        let held = reserved();
        llama.step(1, 256, false).unwrap();
        assert_eq!(reserved(), held);
    });
}

#[test]
fn everything_that_memory_is_not_enough_for_is_an_error() {
    Gpu::default().run(|| {
        let dir = tempfile::tempdir().unwrap();
        let cpu = VarStore::new(Device::Cpu);
        let small = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 20_000, "hidden_size": 256,
            "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        });
        Decoder::new(&cpu.root(), &DecoderConfig::from_value(&small).unwrap()).unwrap();
        pretrained::save(&cpu, dir.path(), &small.to_string()).unwrap();

        let Llama { model, mut tuned, vs, .. } = Llama::new(1, Kind::BFloat16);
        let ids = Tensor::zeros([64, 512], (Kind::Int64, best_device()));
        let before = format!("{:?}", (tuned.adapters(), tuned.model_status()));
        counting::limit_memory(Some(reserved()));
        lacks_memory("open", Decoder::from_pretrained(dir.path(), best_device(), Kind::Double));
        lacks_memory("build", Decoder::new(&(vs.root() / "other"), model.config()));
        lacks_memory("generate", model.generate(&ids, &GenerateOptions::default()));
        let large = LnTuningConfig::default().modules_to_save(["embed_tokens"]);
        lacks_memory("attach", tuned.add_adapter("large", large));
        assert_eq!(format!("{:?}", (tuned.adapters(), tuned.model_status())), before);
    });
}

#[test]
fn a_model_is_loaded_without_a_second_copy_of_its_weights() {
    Gpu::default().run(|| {
        let dir = tempfile::tempdir().unwrap();
        // Nine tensors of 33 MB, and small ones.
        let wide = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4096, "hidden_size": 2048,
            "intermediate_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 2,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        });
        let vs = VarStore::new(Device::Cpu);
        Decoder::new(&vs.root(), &DecoderConfig::from_value(&wide).unwrap()).unwrap();
        let numbers: usize = vs.variables().values().map(Tensor::numel).sum();
        pretrained::save(&vs, dir.path(), &wide.to_string()).unwrap();
        for (kind, size) in [(Kind::Float, 4), (Kind::BFloat16, 2)] {
            let (loaded, bytes) = taken(|| Decoder::from_pretrained(dir.path(), best_device(), kind));
            let most = (numbers * size) as u64 + 70 * MEGABYTE;
            assert!(bytes <= most, "{kind:?}: {bytes} bytes, expected at most {most}");
            // Freed, and used for the next one.
            drop(loaded.unwrap());
        }
    });
}

#[test]
fn operations_on_adapters_take_what_the_adapters_take() {
    Gpu::default().run(|| {
        let Llama { mut tuned, .. } = Llama::new(28, Kind::BFloat16);
        // 57 norms of 3,072 in f32 and in bf16.
        let adapter = 57 * 3072 * (4 + 2);
        let (_, bytes) = taken(|| {
            for index in 0..32 {
                tuned.add_adapter(&format!("a{index}"), LnTuningConfig::default()).unwrap();
            }
        });
        assert!(bytes <= 32 * adapter + 25 * MEGABYTE, "32 adapters: {bytes} bytes");
        let dir = tempfile::tempdir().unwrap();
        let (_, bytes) = taken(|| {
            tuned.set_adapter("a3").unwrap();
            tuned.merge_adapter("a3").unwrap();
            tuned.unmerge_adapter().unwrap();
            tuned.with_disabled(|| ()).unwrap();
            tuned.save_pretrained(dir.path()).unwrap();
            let opt = tuned.optimizer(AdamW::default(), 1e-4).unwrap();
            tuned.unload().unwrap();
            drop(opt);
        });
        assert!(bytes <= 2 * adapter + 21 * MEGABYTE, "using them: {bytes} bytes");
    });
}
