//! The settings of the loss.

use crate::error::{refuse, Result};

/// The target of ignored tokens, as in transformers and PyTorch.
pub const IGNORE_INDEX: i64 = -100;

/// The reduction of the per-token losses to one loss.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Reduction {
    /// The mean over all tokens that are not ignored; 0 if all are.
    #[default]
    Mean,
    /// The sum.
    Sum,
    /// The sum, divided by this number of tokens: that of the whole batch if its gradients are accumulated over several
    /// passes.
    #[doc(alias = "num_items_in_batch")]
    SumOver(i64),
    /// The sum of each row of the targets `[rows, …]`, as `[rows]`, from one product with the head: for rows that belong
    /// to different losses. A head that trains has none.
    SumPerRow,
}

/// Cross-entropy of the logits `logit_cap · tanh(logit_scale · (hidden · weightᵀ + bias) / logit_cap)`, which are never
/// held at once.
///
/// The loss is a scalar in f32 (f64 for hidden states in f64). It works with `backward` and
/// [`Optimizer::backward_step`](crate::Optimizer::backward_step), and can be scaled and added to other losses.
/// Gradients are computed together with the loss, for those of the hidden states, the weight (a tied embedding
/// included) and the bias that require one; under `no_grad` for none. Second derivatives are not implemented.
///
/// Keep the targets on the CPU: tokens whose target is `ignore_index` then skip the head. Ignored targets on a GPU are
/// computed and weighted by 0, since dropping them would wait for the device.
///
/// ```
/// # use tch::{Device, Kind, Tensor};
/// use ln_tuning::loss::LinearCrossEntropy;
/// # tch::manual_seed(0);
/// # let cpu = (Kind::Float, Device::Cpu);
/// let head = Tensor::randn([1000, 16], cpu); // [vocabulary, hidden size]
/// let hidden = Tensor::randn([2, 3, 16], cpu).set_requires_grad(true);
/// let targets = Tensor::from_slice2(&[[5i64, 6, -100], [7, 8, 9]]);
/// let loss = LinearCrossEntropy::default().compute(&hidden, &head, None, &targets)?;
/// loss.backward();
///
/// let logits = hidden.matmul(&head.tr()).view([-1, 1000]);
/// let same = logits.cross_entropy_loss::<Tensor>(&targets.view(-1), None, tch::Reduction::Mean, -100, 0.);
/// assert!((&loss - same).abs().double_value(&[]) < 1e-5);
/// assert_eq!(hidden.grad().size(), [2, 3, 16]);
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[doc(alias = "LigerFusedLinearCrossEntropyLoss")]
#[doc(alias = "CrossEntropyLoss")]
#[non_exhaustive]
pub struct LinearCrossEntropy {
    /// The target of ignored tokens. Default: -100.
    pub ignore_index: i64,
    /// The factor of the logits, before the cap: the inverse of Granite's `logits_scaling`. Default: 1.
    pub logit_scale: f64,
    /// The bound of the logits, as in Gemma 2. Default: none.
    #[doc(alias = "final_logit_softcapping")]
    pub logit_cap: Option<f64>,
    /// The share of each target that is spread over the whole vocabulary, 0 to 1. Default: 0.
    pub label_smoothing: f64,
    /// The factor of an added loss: the squared logarithm of the softmax's denominator (PaLM, arXiv 2204.02311).
    /// Default: 0.
    #[doc(alias = "lse_square_scale")]
    pub z_loss: f64,
    /// The reduction of the per-token losses. Default: the mean.
    pub reduction: Reduction,
    /// The number of tokens per chunk. Default: `None`, chosen from the vocabulary and the device.
    pub chunk_size: Option<i64>,
}

impl Default for LinearCrossEntropy {
    fn default() -> Self {
        LinearCrossEntropy {
            ignore_index: IGNORE_INDEX,
            logit_scale: 1.,
            logit_cap: None,
            label_smoothing: 0.,
            z_loss: 0.,
            reduction: Reduction::Mean,
            chunk_size: None,
        }
    }
}

impl LinearCrossEntropy {
    /// Sets `ignore_index`.
    pub fn ignore_index(mut self, ignore_index: i64) -> Self {
        self.ignore_index = ignore_index;
        self
    }

    /// Sets `logit_scale`.
    pub fn logit_scale(mut self, logit_scale: f64) -> Self {
        self.logit_scale = logit_scale;
        self
    }

    /// Sets `logit_cap`.
    pub fn logit_cap(mut self, logit_cap: impl Into<Option<f64>>) -> Self {
        self.logit_cap = logit_cap.into();
        self
    }

    /// Sets `label_smoothing`.
    pub fn label_smoothing(mut self, label_smoothing: f64) -> Self {
        self.label_smoothing = label_smoothing;
        self
    }

    /// Sets `z_loss`.
    pub fn z_loss(mut self, z_loss: f64) -> Self {
        self.z_loss = z_loss;
        self
    }

    /// Sets `reduction`.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// Sets `chunk_size`.
    pub fn chunk_size(mut self, chunk_size: impl Into<Option<i64>>) -> Self {
        self.chunk_size = chunk_size.into();
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let (smoothing, z, scale) = (self.label_smoothing, self.z_loss, self.logit_scale);
        let (cap, size) = (self.logit_cap.unwrap_or(1.), self.chunk_size.unwrap_or(1));
        let count = if let Reduction::SumOver(count) = self.reduction { count } else { 1 };
        for (fits, name, value, expected) in [
            ((0. ..=1.).contains(&smoothing), "label_smoothing", smoothing, "0 to 1"),
            (z >= 0. && z.is_finite(), "z_loss", z, "a finite number that is not negative"),
            (scale.is_finite(), "logit_scale", scale, "a finite number"),
            (cap > 0. && cap.is_finite(), "logit_cap", cap, "a finite number above 0"),
            (count > 0, "the number of tokens to divide by", count as f64, "at least 1"),
            (size > 0, "chunk_size", size as f64, "at least 1"),
        ] {
            if !fits {
                refuse!(InvalidArgument, "{name} is {value}, expected {expected}");
            }
        }
        Ok(())
    }
}
