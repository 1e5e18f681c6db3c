//! A training step as a CUDA graph: what is captured, what a replay asks of the device, and when there is none.

use std::process::Command;

use ln_tuning::device::{best_device, sent, without_fused_functions};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Inputs, Model, ModelConfig, Seq2Seq, Seq2SeqConfig};
use ln_tuning::recompute::Tape;
use ln_tuning::{
    AdamW, DynamicLossScale, GraphedStep, LnTuningConfig, LnTuningModel, Optimizer, Sgd, Stepped,
};
use tch::nn::{self, Module, VarStore};
use tch::{Device, Kind, Tensor};

use crate::common::root;
use crate::counting::{self, Counts, Gpu};
use crate::llama::Llama;

/// Kernels and products that a graph holds: without its copies, and memory that it sets.
fn work(counts: &Counts) -> u64 {
    let is_work = |name: &str| !name.starts_with("copy ") && name != "cudaMemsetAsync";
    counts.captured.iter().filter(|(name, _)| is_work(name)).map(|(_, count)| count).sum()
}

/// A step of its own, and all that it took.
fn counted(step: impl FnOnce() -> ln_tuning::Result<Stepped>) -> (Stepped, Counts) {
    counting::reset();
    let stepped = step().unwrap();
    (stepped, counting::counts())
}

#[test]
fn a_replayed_step_is_one_launch_and_waits_for_nothing() {
    Gpu::default().run(|| {
        let device = best_device();
        for (kind, fused) in [(Kind::BFloat16, false), (Kind::Float, false), (Kind::BFloat16, true)]
        {
            let Llama { model, mut opt, tuned: _tuned, vs: _vs } = Llama::new(4, kind);
            let loss = LinearCrossEntropy::default();
            let mut step = GraphedStep::default().clip_norm(1.).unwrap();
            let ids = Tensor::arange(128, (Kind::Int64, Device::Cpu)).view([1, 128]);
            let ids = sent(&ids, device).unwrap();
            let mut memory = Vec::new();
            let mut eager = 0;
            for at in 0..8 {
                opt.set_lr(1e-4 * f64::from(at + 1)).unwrap();
                let mut run = || {
                    step.run(&mut opt, &[&ids, &ids], |inputs| {
                        model.loss(Inputs::new(&inputs[0]).train(true), &inputs[1], &loss)
                    })
                };
                let (stepped, counts) =
                    counted(|| if fused { run() } else { without_fused_functions(run) });
                let what = format!("{kind:?}, fused {fused}, step {at}: {:?}", counts.calls);
                assert_eq!(step.without_graph(), None, "{what}");
                assert_eq!(stepped.replayed, at >= 2, "{what}");
                assert_eq!((counts.copies_back, counts.pageable_copies), (0, 0), "{what}");
                memory.push(counts.devices[0].reserved);
                let launched = (counts.launches, counts.products);
                match at {
                    0 => assert!(counts.captured.is_empty(), "{what}"),
                    // The second makes nothing that is kept.
                    1 => eager = launched.0 + launched.1 + counts.calls_with("dot_v2"),
                    _ => {
                        // With a capture, libtorch makes a place for the seed of random numbers.
                        let seeds = counts.kernels_with("FillFunctor<long>");
                        assert_eq!(launched, (seeds, 0), "{what}, {:?}", counts.kernels);
                        assert_eq!(seeds, if at == 2 { 2 } else { 0 }, "{what}");
                        assert_eq!(counts.calls_with("cudaGraphLaunch"), 1, "{what}");
                        // The numbers of the step, in one copy; before the capture as well.
                        assert_eq!(counts.pinned_copies, if at == 2 { 2 } else { 1 }, "{what}");
                    }
                }
                if at == 2 {
                    assert_eq!(work(&counts), eager, "{:?}", counts.captured);
                    let of_host = counts.captured.keys().find(|name| name.contains("pinned"));
                    assert_eq!(of_host, None, "what stands on the host by then would be copied");
                    let ours = |name: &String| name.starts_with("ln_tuning_");
                    assert_eq!(counts.captured.keys().any(ours), fused, "{:?}", counts.captured);
                } else {
                    assert_eq!(counts.synchronisations, 0, "{what}");
                    assert!(counts.captured.is_empty(), "{what}");
                }
            }
            // The memory of the steps before went back to the device.
            let [before, after] = [memory[1], memory[7]].map(|bytes| bytes as f64);
            assert!(
                after <= 1.1 * before,
                "{kind:?}: {before} bytes without a graph, {after} with"
            );
            let state = opt.state_dict().unwrap();
            let step = state.iter().find(|(name, _)| name.ends_with(".step")).unwrap();
            assert_eq!(step.1.int64_value(&[]), 8, "replays count as steps");
        }
    });
}

/// A norm on the device, and a batch.
struct Small {
    vs: VarStore,
    norm: nn::LayerNorm,
    tuned: LnTuningModel,
    x: Tensor,
}

impl Small {
    fn new() -> Small {
        let vs = VarStore::new(best_device());
        let norm = nn::layer_norm(vs.root() / "norm", vec![8], Default::default());
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        let x = Tensor::ones([4, 8], (Kind::Float, vs.device()));
        Small { vs, norm, tuned, x }
    }

    fn optimizer(&self) -> Optimizer {
        self.tuned.optimizer(AdamW::default(), 1e-3).unwrap()
    }

    fn loss(&self, inputs: &[Tensor]) -> ln_tuning::Result<Tensor> {
        Ok(self.norm.forward(&inputs[0]).square().mean(Kind::Float))
    }

    fn run(&self, step: &mut GraphedStep, optimizer: &mut Optimizer, rows: i64) -> bool {
        let x = self.x.narrow(0, 0, rows);
        step.run(optimizer, &[&x], |inputs| self.loss(inputs)).unwrap().replayed
    }
}

#[test]
fn what_changes_between_steps_leads_to_another_graph_and_a_rate_to_none() {
    Gpu::default().run(|| {
        let mut small = Small::new();
        let mut step = GraphedStep::default().most_graphs(2);
        let mut optimizer = small.optimizer();
        let mut ready = |small: &Small, optimizer: &mut Optimizer, what: &str| {
            let replayed: Vec<bool> = (0..4).map(|_| small.run(&mut step, optimizer, 4)).collect();
            assert_eq!(replayed, [false, false, true, true], "{what}");
            assert_eq!(step.without_graph(), None, "{what}");
        };
        ready(&small, &mut optimizer, "at first");
        optimizer.set_weight_decay(0.5).unwrap();
        ready(&small, &mut optimizer, "another weight decay");
        optimizer.set_momentum(0.5).unwrap();
        ready(&small, &mut optimizer, "another momentum");
        optimizer.set_loss_scale(2.).unwrap();
        ready(&small, &mut optimizer, "another loss scale");
        small.vs.bfloat16();
        small.x = small.x.to_kind(Kind::BFloat16);
        small.vs.float();
        small.x = small.x.to_kind(Kind::Float);
        ready(&small, &mut optimizer, "a model that has moved");
        let state = optimizer.state_dict().unwrap();
        optimizer.load_state_dict(&state).unwrap();
        ready(&small, &mut optimizer, "a state that was loaded");
        optimizer.set_dynamic_loss_scale(DynamicLossScale::default()).unwrap();
        ready(&small, &mut optimizer, "a loss scale that is found");
        optimizer.set_loss_scale(1.).unwrap();
        let mut sgd = small.tuned.optimizer(Sgd { momentum: 0.9, ..Sgd::default() }, 0.1).unwrap();
        ready(&small, &mut sgd, "another optimizer");

        // A rate, zeroed gradients, an ordinary step and a checkpoint are no change.
        for at in 0..6 {
            sgd.set_lr(0.1 / f64::from(at + 1)).unwrap();
            sgd.zero_grad().unwrap();
            assert!(small.run(&mut step, &mut sgd, 4), "step {at}");
            let _ = (sgd.state_dict().unwrap(), small.tuned.state_dict("default").unwrap());
        }
        sgd.backward_step(&small.loss(&[small.x.copy()]).unwrap()).unwrap();
        assert!(small.run(&mut step, &mut sgd, 4));
        // At a rate of 0 there is another computation, once.
        sgd.set_lr(0.).unwrap();
        assert!(!small.run(&mut step, &mut sgd, 4));
        sgd.set_lr(0.1).unwrap();
        assert!(small.run(&mut step, &mut sgd, 4));
        // Another shape has its own graph, and one more has none.
        let replayed: Vec<bool> = (0..6).map(|_| small.run(&mut step, &mut sgd, 3)).collect();
        assert_eq!(replayed, [false, false, true, true, true, true]);
        assert!(small.run(&mut step, &mut sgd, 4));
        assert!(!(0..4).any(|_| small.run(&mut step, &mut sgd, 2)));
        let reason = step.without_graph().unwrap();
        assert!(reason.contains("2 other shapes of inputs"), "{reason}");
        assert!(small.run(&mut step, &mut sgd, 3));
        assert_eq!(step.without_graph(), None);
    });
}

#[test]
fn what_cannot_be_captured_runs_one_by_one_and_says_why() {
    Gpu::default().run(|| {
        let small = Small::new();
        let device = best_device();
        let steps = std::cell::Cell::new(0_i64);
        type Forward<'f> = &'f dyn Fn(&[Tensor]) -> ln_tuning::Result<Tensor>;
        let reads: Forward = &|inputs| {
            let loss = small.loss(inputs)?;
            let _ = loss.f_double_value(&[])?;
            Ok(loss)
        };
        let sends: Forward = &|inputs| {
            steps.set(steps.get() + 1);
            let factor = sent(&Tensor::from_slice(&[steps.get()]), device)?;
            Ok((small.loss(inputs)? * factor).sum(Kind::Float))
        };
        for (what, forward, words) in [
            ("reads", reads, "not permitted when stream is capturing"),
            ("sends", sends, "all that changes from step to step must be among its inputs"),
        ] {
            let mut optimizer = small.optimizer();
            let mut step = GraphedStep::default();
            for at in 0..5 {
                let stepped = step.run(&mut optimizer, &[&small.x], forward).unwrap();
                assert!(!stepped.replayed, "{what}");
                let reason = step.without_graph();
                assert_eq!(reason.is_some(), at >= 2, "{what}: {reason:?}");
                assert!(reason.is_none_or(|reason| reason.contains(words)), "{what}: {reason:?}");
            }
            let state = optimizer.state_dict().unwrap();
            assert_eq!(state[0].1.int64_value(&[]), 5, "{what}: each was one step");
        }
        // A capture that failed leaves nothing behind: random numbers are drawn, and another graph is captured.
        let mut optimizer = small.optimizer();
        let mut step = GraphedStep::default();
        for at in 0..5 {
            tch::manual_seed(at);
            counting::reset();
            let stepped = step.run(&mut optimizer, &[&small.x], |inputs| {
                Ok(small.norm.forward(&inputs[0].dropout(0.5, true)).square().mean(Kind::Float))
            });
            assert_eq!(stepped.unwrap().replayed, at >= 2, "{:?}", step.without_graph());
            let counts = counting::counts();
            if at == 2 {
                assert!(counts.captured.keys().any(|name| name.contains("dropout")));
            }
            assert!(at < 3 || counts.launches <= 2, "{:?}", counts.kernels);
        }
        let _ = small.x.dropout(0.5, true);
    });
}

#[test]
fn layers_that_the_host_drops_at_random_are_not_dropped_for_good_in_a_graph() {
    Gpu::default().run(|| {
        let vs = VarStore::new(best_device());
        let config = serde_json::json!({
            "model_type": "bart", "vocab_size": 30, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20,
            "max_position_embeddings": 10, "encoder_layerdrop": 1e-9,
        });
        let config = Seq2SeqConfig::from_value(&config).unwrap();
        let model = Seq2Seq::new(&vs.root(), &config).unwrap();
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
        let mut step = GraphedStep::default();
        let ids = Tensor::ones([1, 4], (Kind::Int64, vs.device()));
        for at in 0..4 {
            let stepped = step.run(&mut optimizer, &[&ids], |inputs| {
                let inputs = Inputs::new(&inputs[0]).decoder_ids(&inputs[0]).train(true);
                Ok(model.logits_with(inputs, &mut Tape::off())?.square().mean(Kind::Float))
            });
            assert!(!stepped.unwrap().replayed);
            let reason = step.without_graph().unwrap_or_default();
            assert_eq!(reason.contains("whether a layer is dropped"), at >= 2, "{reason}");
        }
    });
}

/// The header needs those of CUDA; the C++ file has the names of what it declares, and room for any.
#[test]
fn the_graph_that_is_called_by_its_names_is_that_of_the_header() {
    let Some((libtorch, headers)) = counting::headers_of_cuda() else { return };
    let source = r#"
        #include <ATen/cuda/CUDAGraph.h>
        using at::cuda::CUDAGraph;
        static_assert(sizeof(CUDAGraph) <= ROOM && alignof(CUDAGraph) <= 16);
        static_assert(std::is_same_v<c10::MempoolId_t, std::pair<unsigned long long, unsigned long long>>);
        static_assert(sizeof(cudaStreamCaptureMode) == 4 && cudaStreamCaptureModeThreadLocal == MODE);
        void use(void* at) {
          auto* graph = new (at) CUDAGraph(false);
          void (CUDAGraph::*begin)(c10::MempoolId_t, cudaStreamCaptureMode) = &CUDAGraph::capture_begin;
          (graph->*begin)({0, 0}, cudaStreamCaptureModeThreadLocal);
          graph->capture_end();
          graph->replay();
          c10::MempoolId_t pool = graph->pool();
          (void)pool;
          graph->~CUDAGraph();
        }
    "#;
    let ours = std::fs::read_to_string(root().join("csrc/cuda_graph.cpp")).unwrap();
    assert!(ours.contains("THREAD_LOCAL = 1;") && ours.contains("ROOM = 1 << 12;"));
    let dir = tempfile::tempdir().unwrap();
    let (file, object) = (dir.path().join("header.cpp"), dir.path().join("header.o"));
    std::fs::write(&file, source).unwrap();
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-w", "-c", "-DROOM=(1<<12)", "-DMODE=1", "-o"]);
    compiler.arg(&object).arg(&file).arg("-I").arg(libtorch.join("../include"));
    compiler.arg("-I").arg(root().join("tests/cuda/runtime"));
    for header in headers {
        compiler.arg("-isystem").arg(header);
    }
    let Ok(done) = compiler.output() else { return };
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let names = Command::new("nm").arg("-u").arg(&object).output().unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    let names: Vec<&str> = names.split_whitespace().filter(|n| n.contains("9CUDAGraph")).collect();
    assert_eq!(names.len(), 6, "{names:?}");
    for name in names {
        assert!(ours.contains(&format!("\"{name}\"")), "{name} is not in cuda_graph.cpp");
    }
}
