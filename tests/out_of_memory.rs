//! Memory that is not enough is an error of its own kind, at whichever allocation it happens, and leaves everything as
//! it was: what failed is done again, and gives the same as if it had not failed.
//!
//! libtorch gets the memory of tensors on the CPU from `posix_memalign`. This program has one of its own, which comes
//! before the C library's and fails when a test wants it to.
#![allow(unsafe_code)]

mod nets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{c_int, c_void};

use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, DecoderConfig, GenerateOptions, Model, ModelConfig};
use ln_tuning::recompute::Recompute;
use ln_tuning::{
    pretrained, AdamW, DynamicLossScale, ErrorKind, LnTuningConfig, LnTuningModel, LoadOptions,
    Optimizer, Result, Sgd,
};
use nets::{bits, fill, named_bits, snapshot, Net};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

const NOT_ENOUGH: c_int = 12;

/// Bytes that are always there: tch makes a tensor on the host for each scalar, and nothing is left to do where that
/// fails.
const SCALAR: usize = 64;

thread_local! {
    /// Allocations that this thread may still make before one fails.
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
}

extern "C" {
    fn aligned_alloc(alignment: usize, size: usize) -> *mut c_void;
}

/// # Safety
/// As that of the C library.
#[no_mangle]
pub unsafe extern "C" fn posix_memalign(
    result: *mut *mut c_void,
    alignment: usize,
    size: usize,
) -> c_int {
    let left = LEFT.get();
    if size > SCALAR && left != u64::MAX {
        LEFT.set(left.checked_sub(1).unwrap_or(u64::MAX));
        if left == 0 {
            return NOT_ENOUGH;
        }
    }
    // SAFETY: the caller promises a power of two and a pointer to write to.
    let memory = unsafe { aligned_alloc(alignment, size) };
    if memory.is_null() {
        return NOT_ENOUGH;
    }
    unsafe { *result = memory };
    0
}

/// Rust's memory, which is not asked for where libtorch's is.
struct OfRust;

unsafe impl GlobalAlloc for OfRust {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match layout.align() {
            ..=16 => unsafe { System.alloc(layout) },
            alignment => unsafe { aligned_alloc(alignment, layout.size()) }.cast(),
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static OF_RUST: OfRust = OfRust;

/// Runs `f`; the allocation after so many fails, once. Also gives whether it was reached.
fn failing_after<T>(allocations: u64, f: impl FnOnce() -> T) -> (T, bool) {
    LEFT.set(allocations);
    let result = f();
    let reached = LEFT.replace(u64::MAX) == u64::MAX;
    (result, reached)
}

/// Does work that ends in `outcome`, without a failure and then with one at each allocation in turn, after which what
/// failed is done again: the outcome is the same. `prepare` makes what is worked on, `seen` is all that can be seen of
/// it, which a failure does not change.
fn at_every_allocation<State, Seen: PartialEq>(
    name: &str,
    prepare: impl Fn() -> State,
    seen: impl Fn(&mut State) -> Seen,
    work: impl Fn(&mut State) -> Result<()>,
) {
    tch::set_num_threads(1);
    let mut state = prepare();
    work(&mut state).unwrap();
    let expected = seen(&mut state);
    for allocations in 0.. {
        let mut state = prepare();
        let before = seen(&mut state);
        let (result, reached) = failing_after(allocations, || work(&mut state));
        if !reached {
            assert!(allocations > 0, "{name} allocates nothing");
            println!("{name}: {allocations} allocations");
            return;
        }
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{name}, {allocations}: {error}");
            assert!(seen(&mut state) == before, "{name}, {allocations}: half changed");
            work(&mut state).unwrap_or_else(|e| panic!("{name}, {allocations}, again: {e}"));
        }
        assert!(seen(&mut state) == expected, "{name}, {allocations}: another outcome");
    }
}

/// A tiny Llama with an adapter and its optimiser.
struct Training {
    vs: VarStore,
    model: Decoder,
    tuned: LnTuningModel,
    opt: Optimizer,
    ids: Tensor,
}

fn config() -> DecoderConfig {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 23, "hidden_size": 16,
        "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
    });
    DecoderConfig::from_value(&config).unwrap()
}

impl Training {
    fn new(kind: Kind) -> Self {
        let mut vs = VarStore::new(Device::Cpu);
        vs.set_kind(kind);
        let model = Decoder::new(&vs.root(), &config()).unwrap();
        fill(&vs, 0.2);
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        let opt = tuned.optimizer(AdamW::default(), 1e-1).unwrap();
        let ids = Tensor::from_slice2(&[[3_i64, 9, 14, 21], [7, 8, 17, 12]]);
        Training { vs, model, tuned, opt, ids }
    }

    fn loss(&self) -> Result<Tensor> {
        self.model.loss(&self.ids, &self.ids, &LinearCrossEntropy::default())
    }

    fn backward(&mut self) -> Result<()> {
        let loss = self.loss()?;
        self.opt.backward(&loss)
    }

    /// All that can be seen of it, as bytes.
    fn seen(&mut self) -> impl PartialEq {
        let gradients = self.opt.gradients().unwrap();
        let gradients = gradients.iter().map(|(_, gradient)| gradient.as_ref().map(bits));
        let shown = |tensor: &Tensor| Some(tensor.grad()).filter(Tensor::defined).map(|g| bits(&g));
        let leaves: Vec<_> = self.opt.trainable_variables().unwrap().iter().map(shown).collect();
        let state = named_bits(&self.opt.state_dict().unwrap());
        let weights = named_bits(&self.tuned.state_dict("default").unwrap());
        (gradients.collect::<Vec<_>>(), leaves, state, weights, snapshot(&self.vs))
    }
}

#[test]
fn a_backward_pass_that_lacks_memory_changes_nothing_and_can_be_repeated() {
    let first = |kind| move || Training::new(kind);
    let second = || {
        let mut training = Training::new(Kind::BFloat16);
        training.backward().unwrap();
        training
    };
    let recomputed = |training: &mut Training| {
        let Training { model, opt, ids, .. } = training;
        let loss = opt.backward_recompute(&Recompute::default(), |tape| {
            model.loss_with(&*ids, &*ids, &LinearCrossEntropy::default(), tape)
        });
        loss.map(drop)
    };
    let (seen, backward) = (Training::seen, Training::backward);
    at_every_allocation("backward, f32", first(Kind::Float), seen, backward);
    at_every_allocation("backward, bf16", first(Kind::BFloat16), seen, backward);
    at_every_allocation("a second backward", second, seen, backward);
    at_every_allocation("recomputed", second, seen, recomputed);
}

#[test]
fn a_step_that_lacks_memory_changes_nothing_and_can_be_repeated() {
    type Optimize = fn(&LnTuningModel) -> Result<Optimizer>;
    let optimizers: [(&str, Optimize); 5] = [
        ("AdamW", |tuned| tuned.optimizer(AdamW::default(), 0.1)),
        ("AMSGrad", |tuned| tuned.optimizer(AdamW { amsgrad: true, ..AdamW::default() }, 0.1)),
        ("SGD", |tuned| tuned.optimizer(Sgd { momentum: 0., ..Sgd::default() }, 0.1)),
        ("Nesterov", |tuned| {
            tuned.optimizer(Sgd { momentum: 0.9, wd: 0.1, nesterov: true, ..Sgd::default() }, 0.1)
        }),
        ("dynamic loss scale", |tuned| {
            let mut opt = tuned.optimizer(Sgd { momentum: 0.9, ..Sgd::default() }, 0.1)?;
            opt.set_dynamic_loss_scale(DynamicLossScale::default())?;
            Ok(opt)
        }),
    ];
    for (name, optimize) in optimizers {
        for steps in [0, 1] {
            let prepare = || {
                let mut training = Training::new(Kind::BFloat16);
                training.opt = optimize(&training.tuned).unwrap();
                for _ in 0..steps {
                    training.backward().unwrap();
                    training.opt.step().unwrap();
                    training.opt.zero_grad().unwrap();
                }
                training.backward().unwrap();
                training
            };
            let name = format!("{name}, step {steps}");
            at_every_allocation(&name, prepare, Training::seen, |training| training.opt.step());
        }
    }
}

#[test]
fn a_micro_batch_that_lacks_memory_is_not_counted() {
    tch::set_num_threads(1);
    // Two of three fill an update; what failed among them is made again, and the third one ends it.
    let run = |allocations: u64| {
        let mut training = Training::new(Kind::BFloat16);
        training.opt.set_accumulation(3).unwrap();
        let step = |training: &mut Training| {
            let loss = training.loss()?;
            training.opt.backward_step_clip_norm(&loss, 1.)
        };
        let (errors, reached) = failing_after(allocations, || {
            let mut errors = Vec::new();
            for _ in 0..2 {
                while let Err(error) = step(&mut training) {
                    errors.push(error.kind());
                }
            }
            errors
        });
        assert!(errors.len() <= 1 && errors.iter().all(|kind| *kind == ErrorKind::OutOfMemory));
        let before = snapshot(&training.vs);
        step(&mut training).unwrap();
        assert!(snapshot(&training.vs) != before, "{allocations}: the update has not ended");
        (named_bits(&training.tuned.state_dict("default").unwrap()), reached)
    };
    let (expected, _) = run(u64::MAX - 1);
    // Each allocation of one has its turn in the tests of the backward pass.
    for allocations in (0..).step_by(5) {
        let (weights, reached) = run(allocations);
        assert!(weights == expected, "{allocations}");
        if !reached {
            assert!(allocations > 50, "{allocations}");
            return;
        }
    }
}

/// A model with two trained adapters, or none.
struct Adapters {
    net: Net,
    tuned: Option<LnTuningModel>,
}

impl Adapters {
    fn none() -> Self {
        Adapters { net: Net::new(Kind::BFloat16), tuned: None }
    }

    fn two() -> Self {
        let net = Net::new(Kind::BFloat16);
        let tuned = Some(nets::two(&net));
        Adapters { net, tuned }
    }

    fn tuned(&mut self) -> &mut LnTuningModel {
        self.tuned.as_mut().unwrap()
    }

    fn seen(&mut self) -> impl PartialEq {
        let names = self.tuned.as_ref().map(|tuned| {
            let names = tuned.adapters();
            let weights = |name: &String| named_bits(&tuned.state_dict(name).unwrap());
            let weights: Vec<_> = names.iter().map(weights).collect();
            (names, weights, tuned.active_adapter(), format!("{:?}", tuned.model_status()))
        });
        (names, snapshot(&self.net.vs), self.net.flags())
    }
}

#[test]
fn an_operation_on_adapters_that_lacks_memory_changes_nothing_and_can_be_repeated() {
    type Operation<'a> = (&'a str, &'a dyn Fn(&mut Adapters) -> Result<()>);
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("saved");
    let mut two = Adapters::two();
    two.tuned().save_pretrained(&saved).unwrap();
    let state = two.tuned().state_dict("b").unwrap();
    let options = LoadOptions::default();
    let attached: &[Operation] = &[
        ("add", &|a| a.tuned().add_adapter("c", LnTuningConfig::default())),
        ("load", &|a| a.tuned().load_adapter(saved.join("b"), "c", &options).map(drop)),
        ("switch", &|a| a.tuned().set_adapter("b")),
        ("interpolate", &|a| a.tuned().interpolate(&[("a", 0.5), ("a", 0.5)], "c")),
        ("load_state_dict", &|a| a.tuned().load_state_dict("b", &state, &options).map(drop)),
        ("save", &|a| a.tuned().save_pretrained(dir.path().join("again"))),
        ("diff", &|a| a.tuned().diff("a", None).map(drop)),
    ];
    for (name, operation) in attached {
        at_every_allocation(name, Adapters::two, Adapters::seen, operation);
    }
    let attach = |a: &mut Adapters| {
        a.tuned = Some(LnTuningModel::new(&a.net.vs, LnTuningConfig::default())?);
        Ok(())
    };
    at_every_allocation("attach", Adapters::none, Adapters::seen, attach);
    let open = |a: &mut Adapters| {
        a.tuned = Some(LnTuningModel::from_pretrained(&a.net.vs, saved.join("b"))?);
        Ok(())
    };
    at_every_allocation("from_pretrained", Adapters::none, Adapters::seen, open);
}

#[test]
fn a_model_that_lacks_memory_is_an_error_and_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let training = Training::new(Kind::Float);
    let config = serde_json::to_string(&config().to_value()).unwrap();
    pretrained::save(&training.vs, dir.path(), &config).unwrap();
    let open = |model: &mut Option<(VarStore, Decoder)>| {
        *model = Some(Decoder::from_pretrained(dir.path(), Device::Cpu, Kind::BFloat16)?);
        Ok(())
    };
    let seen = |model: &mut Option<(VarStore, Decoder)>| model.as_ref().map(|(vs, _)| snapshot(vs));
    at_every_allocation("open in another kind", || None, seen, open);
    let generate = |tokens: &mut Option<Tensor>| {
        let options = GenerateOptions::default().max_new_tokens(3).temperature(0.8).top_k(5);
        tch::manual_seed(1);
        *tokens = Some(training.model.generate(&training.ids, &options)?);
        Ok(())
    };
    let seen = |tokens: &mut Option<Tensor>| tokens.as_ref().map(bits);
    at_every_allocation("generate", || None, seen, generate);
}
