//! Two processes with a GPU each: libtorch's own ProcessGroupNCCL, on an NCCL that counts and sends nothing.

use std::sync::Arc;
use std::time::Duration;

use ln_tuning::distributed::{ProcessGroup, ReduceOp};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, Inputs};
use ln_tuning::{AdamW, DynamicLossScale, LnTuningConfig, LnTuningModel, Optimizer, Result};
use tch::{Device, Kind, Tensor};

use crate::counting::{self, Counts, Gpu};
use crate::training_step::{built, decoders, sent, step};

const RANKS: usize = 2;
/// The sum of losses of each rank, in two parts, travels behind the gradient.
const TAIL: usize = 2 * RANKS;

/// All memory of the devices has this byte in it, so that all ranks have the same weights.
const GPUS: Gpu =
    Gpu { sm: 90, devices: RANKS as u32, memory: 80 << 30, fill: Some(0x3c), computes: false };

/// The counts of this work; fails if it waits for the device.
fn counted(what: &str, work: impl FnOnce() -> Result<()>) -> Counts {
    counting::reset();
    work().unwrap_or_else(|error| panic!("{what}: {error}"));
    let counts = counting::counts();
    let found = (counts.synchronisations, counts.pageable_copies, counts.copies_back);
    assert_eq!(found, (0, 0, 0), "{what}: {:?}", counts.calls);
    counts
}

/// Fails unless NCCL was asked for so many sums of this tensor, and for nothing else.
fn only(what: &str, counts: &Counts, times: u64, elements: usize) {
    let name = format!("ncclAllReduce f32 {elements}");
    let found =
        (counts.calls_with(&name), counts.calls_with("ncclAll"), counts.calls_with("ncclB"));
    assert_eq!(found, (times, times, 0), "{what}, {name}: {:?}", counts.calls);
}

#[test]
fn a_step_of_two_ranks_is_one_all_reduce_of_the_gradient_and_waits_for_no_device() {
    GPUS.run_ranks(RANKS, || {
        // A program that has not asked for CUDA before.
        let group = ProcessGroup::from_env_with(Duration::from_secs(60)).unwrap();
        assert!(group.uses_nccl(), "each rank has a GPU of its own");
        let group = Arc::new(group);
        let device = Device::Cuda(group.local_rank());
        let config = decoders().into_iter().find(|c| c["model_type"] == "llama").unwrap();
        let labels = Tensor::arange(18, (Kind::Int64, Device::Cpu)).view([2, 9]);
        let ids = sent(&labels, device);
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let (vs, model) = built::<Decoder>(&config, kind, device);
            let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
            let mut opt = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
            if kind == Kind::Half {
                opt.set_dynamic_loss_scale(DynamicLossScale::default()).unwrap();
            }
            counting::reset();
            opt.set_process_group(group.clone()).unwrap();
            // Two layers with two norms of 64 weights, and one behind them.
            let weights = 5 * 64;
            let handed_out = counting::counts().calls_with(&format!("ncclBroadcast f32 {weights}"));
            assert_eq!(handed_out, 1, "the weights of rank 0, whole and in f32");
            let loss = || {
                model.loss(Inputs::new(&ids).train(true), &labels, &LinearCrossEntropy::default())
            };
            let what = |words: &str| format!("{words}, {kind:?}, rank {}", group.rank());
            // The first makes what is kept.
            for _ in 0..2 {
                let counts = counted(&what("a step"), || step(&mut opt, &loss()?));
                only(&what("a step"), &counts, 1, weights + TAIL);
            }
            let by_tokens = |opt: &mut Optimizer| {
                opt.zero_grad()?;
                let own = loss()?;
                opt.backward(&own)?;
                let (_, tokens) = opt.all_reduce(&own, 5 + 7 * group.rank() as i64)?;
                assert_eq!(tokens, 17);
                let _ = opt.clip_grad_norm(1.)?;
                opt.step()
            };
            let counts = counted(&what("by tokens"), || by_tokens(&mut opt));
            only(&what("by tokens"), &counts, 1, weights + TAIL);
            opt.set_accumulation(3).unwrap();
            for batch in 1..=6 {
                let what = what(&format!("batch {batch} of accumulations of 3"));
                let counts = counted(&what, || opt.backward_step_clip_norm(&loss()?, 1.));
                only(&what, &counts, u64::from(batch % 3 == 0), weights + TAIL);
            }
        }
    });
}

#[test]
fn operations_on_two_gpus_are_those_of_nccl_in_the_memory_of_the_tensor() {
    GPUS.run_ranks(RANKS, || {
        let group = ProcessGroup::from_env_with(Duration::from_secs(60)).unwrap();
        let device = Device::Cuda(group.local_rank());
        let mut own = Tensor::zeros([3, 4], (Kind::BFloat16, device));
        let counts = counted("in place", || group.all_reduce(&mut own, ReduceOp::Sum));
        assert_eq!((counts.calls_with("ncclAllReduce bf16 12"), counts.launches), (1, 0));
        let counts = counted("columns", || group.all_reduce(&mut own.tr(), ReduceOp::Max));
        assert_eq!((counts.calls_with("ncclAllReduce bf16 12"), counts.launches), (1, 2));
        let counts = counted("broadcast", || group.broadcast(&mut own, 1));
        assert_eq!(counts.calls_with("ncclBroadcast bf16 12"), 1);
        let counts = counted("gathered", || {
            let all = group.all_gather(&own)?;
            assert!(all.iter().all(|part| part.device() == device && part.size() == [3, 4]));
            Ok(())
        });
        assert_eq!(counts.calls_with("ncclAllGather bf16 12"), 1);
        // Tensors of the CPU go by Gloo.
        let mut host = Tensor::from(1_i64);
        let counts = counted("of the host", || group.all_reduce(&mut host, ReduceOp::Sum));
        assert_eq!((host.int64_value(&[]), counts.calls_with("nccl")), (2, 0));
        let error = group.all_reduce(&mut own.narrow(0, 0, 1 + group.rank() as i64), ReduceOp::Sum);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("of a tensor [2, 4] of kind BFloat16 on CUDA"), "{error}");
        // One communicator, which is ended with the group.
        counting::reset();
        group.barrier().unwrap();
        drop(group);
        let counts = counting::counts();
        let calls = ["ncclCommInitRank", "ncclCommFinalize", "ncclCommDestroy", "ncclCommAbort"];
        assert_eq!(calls.map(|call| counts.calls_with(call)), [0, 1, 1, 0]);
    });
}
