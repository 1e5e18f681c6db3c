//! The settings of the loss.

use crate::error::{refusal, Result};

/// The target that transformers and PyTorch give to tokens that do not count.
pub const IGNORE_INDEX: i64 = -100;

/// What the losses of the tokens are put together to.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Reduction {
    /// Their mean over the tokens that count; 0 if none does.
    #[default]
    Mean,
    /// Their sum.
    Sum,
    /// Their sum, divided by this number of tokens: that of the whole batch where this is one of several passes whose
    /// gradients are added up.
    #[doc(alias = "num_items_in_batch")]
    SumOver(i64),
}

/// Cross-entropy of `logit_cap · tanh(logit_scale · (hidden · weightᵀ + bias) / logit_cap)`, without those logits.
///
/// The loss is a scalar in f32 (f64 for hidden states in f64), whatever the kind of the model. It is ready for `backward`, for [`Optimizer::backward_step`](crate::Optimizer::backward_step) and to
/// be scaled or added to other losses. Gradients are computed together with the loss, and only those that are asked
/// for: of the hidden states, and of the weight and bias if they train (a tied embedding among them). Under `no_grad`
/// there are none. Gradients of gradients are not there.
///
/// Tokens whose target is `ignore_index` are left out before the head if the targets are on the CPU, so keep them there.
/// Targets on a GPU are computed with and weighted by 0, since dropping them would wait for the device.
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
    /// The target of tokens that do not count; -100.
    pub ignore_index: i64,
    /// Multiplies the logits, before the cap; 1. (The inverse of Granite's `logits_scaling`.)
    pub logit_scale: f64,
    /// Bounds the logits as Gemma 2 does; none.
    #[doc(alias = "final_logit_softcapping")]
    pub logit_cap: Option<f64>,
    /// How much of each target is spread over the whole vocabulary; 0.
    pub label_smoothing: f64,
    /// Adds this times the square of the logarithm of the softmax's denominator (PaLM, arXiv 2204.02311); 0.
    #[doc(alias = "lse_square_scale")]
    pub z_loss: f64,
    /// What the losses of the tokens are put together to; their mean.
    pub reduction: Reduction,
    /// How many tokens go through the head at a time; `None`: as the shapes suggest.
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
        let out = |name: &str, value: f64, expected: &str| {
            Err(refusal!(InvalidArgument, "{name} is {value}, expected {expected}"))
        };
        if !(0. ..=1.).contains(&self.label_smoothing) {
            return out("label_smoothing", self.label_smoothing, "0 to 1");
        }
        if !(self.z_loss >= 0. && self.z_loss.is_finite()) {
            return out("z_loss", self.z_loss, "a finite number that is not negative");
        }
        if !self.logit_scale.is_finite() {
            return out("logit_scale", self.logit_scale, "a finite number");
        }
        if let Some(cap) = self.logit_cap.filter(|cap| !(*cap > 0. && cap.is_finite())) {
            return out("logit_cap", cap, "a finite number above 0");
        }
        match (self.reduction, self.chunk_size) {
            (Reduction::SumOver(count @ ..=0), _) => {
                out("the number of tokens to divide by", count as f64, "at least 1")
            }
            (_, Some(size @ ..=0)) => out("chunk_size", size as f64, "at least 1"),
            _ => Ok(()),
        }
    }
}
