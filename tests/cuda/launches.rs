//! The kernels of one training step: how many, and which. A bound here is a budget: what goes below it stays below.

use ln_tuning::device::{best_device, without_fused_functions};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::Inputs;
use ln_tuning::recompute::Recompute;
use tch::{Device, Kind, Tensor};

use crate::counting::{self, Counts, Gpu};
use crate::llama::Llama;
use crate::training_step::sent;

impl Llama {
    /// Goes forward and backward, and updates: what each takes.
    fn counted(&mut self, labels: &Tensor, loss: &LinearCrossEntropy) -> [Counts; 3] {
        let ids = sent(labels, best_device());
        self.counted_of(Inputs::new(&ids), labels, loss)
    }

    fn counted_of(
        &mut self,
        ids: Inputs,
        labels: &Tensor,
        loss: &LinearCrossEntropy,
    ) -> [Counts; 3] {
        counting::reset();
        let loss = self.model.loss(ids.train(true), labels, loss).unwrap();
        let forward = counting::counts();
        counting::reset();
        self.opt.zero_grad().unwrap();
        self.opt.backward(&loss).unwrap();
        let backward = counting::counts();
        counting::reset();
        let _ = self.opt.clip_grad_norm(1.).unwrap();
        self.opt.step().unwrap();
        [forward, backward, counting::counts()]
    }
}

fn labels(batch: i64, length: i64) -> Tensor {
    Tensor::zeros([batch, length], (Kind::Int64, Device::Cpu)) + 5
}

fn sum(counts: &[Counts], of: impl Fn(&Counts) -> u64) -> u64 {
    counts.iter().map(of).sum()
}

#[test]
fn a_layer_has_its_budget_and_its_kernels() {
    Gpu::default().run(|| {
        without_fused_functions(|| {
            for (kind, name, most, attention) in [
                (Kind::BFloat16, "GemmEx bf16", [11, 23], "flash_fwd_kernel"),
                (Kind::Half, "GemmEx f16", [11, 23], "flash_fwd_kernel"),
                // Keys and values are repeated: attention in f32 has no grouped heads.
                (Kind::Float, "Sgemm_v2", [13, 26], "fmha_cutlassF"),
            ] {
                let [two, four] = [2, 4].map(|layers| {
                    let mut llama = Llama::new(layers, kind);
                    let _ = llama.counted(&labels(1, 128), &LinearCrossEntropy::default());
                    llama.counted(&labels(1, 128), &LinearCrossEntropy::default())
                });
                let per_layer = |pass: usize, of: &dyn Fn(&Counts) -> u64| {
                    (of(&four[pass]) - of(&two[pass])) / 2
                };
                let launches = |pass| per_layer(pass, &|counts| counts.launches);
                let products = |pass| per_layer(pass, &|counts| counts.products);
                // Norm, cat, roll, mul, addcmul, attention, add; norm, silu, mul, add.
                assert!(launches(0) <= most[0], "{kind:?}: {} launches forward", launches(0));
                assert!(launches(1) <= most[1], "{kind:?}: {} launches backward", launches(1));
                // No product for the gradient of a frozen weight.
                assert_eq!((products(0), products(1)), (7, 7), "{kind:?}");
                // The number of layers costs the update nothing.
                assert_eq!(two[2].launches, four[2].launches, "{kind:?}");
                let kernels = |name: &str| {
                    [0, 1].map(|pass| per_layer(pass, &|counts| counts.kernels_with(name)))
                };
                assert_eq!(
                    kernels("vectorized_layer_norm_kernel"),
                    [2, 0],
                    "{kind:?}: fused norms"
                );
                assert_eq!(
                    kernels("layer_norm_grad_input_kernel"),
                    [0, 2],
                    "{kind:?}: fused norms"
                );
                assert_eq!(kernels(attention), [1, 0], "{kind:?}: {:?}", four[0].kernels);
                assert_eq!(kernels("roll_cuda_kernel"), [1, 1], "queries and keys turn together");
                for counts in &four {
                    // All products are plain ones, in the model's kind.
                    assert_eq!(counts.calls_with("Batched"), 0, "{:?}", counts.calls);
                    assert_eq!(counts.calls_with(name), counts.products, "{:?}", counts.calls);
                }
            }
        });
    });
}

#[test]
fn a_chunk_of_the_loss_and_an_update_have_their_budgets() {
    Gpu::default().run(|| {
        without_fused_functions(|| {
            let mut llama = Llama::new(1, Kind::BFloat16);
            let mut step = |chunks: i64, ignored: i64| {
                let labels = labels(1, 512);
                let _ = labels.narrow(1, 0, ignored).fill_(-100);
                let loss = LinearCrossEntropy::default().chunk_size(512 / chunks + 1);
                let _ = llama.counted(&labels, &loss);
                llama.counted(&labels, &loss)
            };
            let [one, five] = [1, 5].map(|chunks| step(chunks, 0));
            let per_chunk = |of: fn(&Counts) -> u64| (of(&five[0]) - of(&one[0])) / 4;
            // The target's logit, the largest one, the softmax, its largest, the target's 1 subtracted; to bf16.
            assert!(per_chunk(|counts| counts.launches) <= 6, "{:?}", five[0].kernels);
            assert_eq!(per_chunk(|counts| counts.products), 2, "logits, and the gradient below");
            // In f32 from the product on: nothing converts the logits.
            assert_eq!(one[0].kernels_with("bfloat16_copy"), 1, "{:?}", one[0].kernels);
            assert!(one[0].pinned_copies <= 1, "labels, in one copy");
            // Ignored tokens cost no launch.
            let masked = step(1, 100);
            assert!(masked[0].launches <= one[0].launches, "{:?}", masked[0].kernels);

            // Weights and gradients that user code wrote are looked for (12), the norm clipped (6), AdamW (8), and weights
            // and gradients shown in the model's kind (2).
            let update = one[2].launches;
            assert!(update <= 28, "{update} launches: {:?}", one[2].kernels);
            let mut tuned = || {
                let ids = labels(1, 512).to_device(best_device());
                let loss = llama.model.loss(&ids, &labels(1, 512), &LinearCrossEntropy::default());
                counting::reset();
                llama.opt.backward_step_clip_norm(&loss.unwrap(), 1.).unwrap();
                counting::counts().launches
            };
            let _ = tuned();
            // In one call, nothing is looked for that user code cannot have changed.
            let apart = one[1].launches + one[2].launches;
            assert!(tuned() + 8 <= apart, "{} launches, {apart} in single calls", tuned());
        });
    });
}

#[test]
fn a_step_of_3b_has_its_budget_of_launches_and_memory() {
    Gpu::default().run(|| {
        without_fused_functions(|| {
            let mut llama = Llama::new(28, Kind::BFloat16);
            let plain = LinearCrossEntropy::default();
            for (batch, length, packed, most, gigabytes) in [
                (1, 128, false, 1_030, 7.2),
                (4, 768, false, 1_050, 14.1),
                (4, 768, true, 1_160, 14.3),
            ] {
                let labels = labels(batch, length);
                let hundreds =
                    Tensor::arange(length, (Kind::Int64, Device::Cpu)).floor_divide_scalar(100);
                let hundreds = hundreds.expand([batch, length], false).contiguous();
                let hundreds = sent(&hundreds, best_device());
                let ids = sent(&labels, best_device());
                let inputs = Inputs::new(&ids).documents(packed.then_some(&hundreds));
                let _ = llama.counted_of(inputs, &labels, &plain);
                let counts = llama.counted_of(inputs, &labels, &plain);
                let what = format!("{batch} × {length}{}", if packed { ", packed" } else { "" });
                let launches = sum(&counts, |counts| counts.launches);
                assert!(launches <= most, "{what}: {launches} launches");
                assert_eq!(
                    sum(&counts, |counts| counts.products),
                    404 - if batch == 1 { 10 } else { 0 }
                );
                assert_eq!(sum(&counts, |counts| counts.synchronisations), 0, "{what}");
                assert_eq!(sum(&counts, |counts| counts.pageable_copies), 0, "{what}");
                let peak = counting::counts().devices[0].peak as f64 / 1e9;
                assert!(peak <= gigabytes, "{what}: {peak} GB");
            }
        });
    });
}

#[cfg(feature = "kernels")]
#[test]
fn a_fused_step_of_3b_has_its_budget_of_launches_and_memory() {
    Gpu::default().run(|| {
        let mut llama = Llama::new(28, Kind::BFloat16);
        let labels = labels(4, 768);
        let mut step = || llama.counted(&labels, &LinearCrossEntropy::default());
        let _ = step();
        let counts = step();
        let launches = sum(&counts, |counts| counts.launches);
        assert!(launches <= 510, "{launches} launches: {counts:#?}");
        assert_eq!(sum(&counts, |counts| counts.products), 404);
        assert_eq!(sum(&counts, |counts| counts.synchronisations), 0);
        let ours = |pass: usize, kernel: &str| {
            counts[pass].kernels_with(&format!("ln_tuning_{kernel}_bf16"))
        };
        // Two norms in each of 28 layers, and one behind them.
        assert_eq!((ours(0, "norm"), ours(0, "gated"), ours(0, "rope")), (57, 28, 28));
        // The loss computes its gradient with it, 512 tokens at a time.
        assert_eq!(ours(0, "cross_entropy"), 6);
        // Gradients of queries, keys and values, of gate and up: the products add them up.
        assert_eq!(counts[1].kernels_with("CUDAFunctor_add"), 0);
        assert_eq!((ours(1, "norm_backward"), ours(1, "total")), (57, 57));
        assert_eq!((ours(1, "gated_backward"), ours(1, "rope")), (28, 28));
        let peak = counting::counts().devices[0].peak as f64 / 1e9;
        assert!(peak <= 12.6, "{peak} GB");
    });
}

#[test]
fn a_recomputed_step_of_3b_has_its_budget_of_launches_and_memory() {
    Gpu::default().run(|| {
        without_fused_functions(|| {
            let mut llama = Llama::new(28, Kind::BFloat16);
            let labels = labels(4, 768);
            let ids = labels.to_device(best_device());
            let plain = LinearCrossEntropy::default();
            for _ in 0..2 {
                counting::reset();
                llama.opt.zero_grad().unwrap();
                let recompute = Recompute::default();
                let forward = |tape: &mut _| llama.model.loss_with(&ids, &labels, &plain, tape);
                let _ = llama.opt.backward_recompute(&recompute, forward).unwrap();
                let _ = llama.opt.clip_grad_norm(1.).unwrap();
                llama.opt.step().unwrap();
            }
            let counts = counting::counts();
            assert!(counts.launches <= 1_450, "recomputed: {} launches", counts.launches);
            assert_eq!((counts.synchronisations, counts.pageable_copies), (0, 0));
            let peak = counts.devices[0].peak as f64 / 1e9;
            assert!(peak <= 8.4, "recomputed: {peak} GB");
        });
    });
}
