//! The loss and its gradients, chunk by chunk, in a reused buffer.

use tch::{Device, Tensor};

use super::head::Head;
use super::linear_cross_entropy::LinearCrossEntropy;
use super::targets::Targets;
use crate::error::Result;

/// The number of logits that stay in a CPU's cache: the size of a block if logits are converted.
const CACHED: i64 = 1 << 21;

/// Sums over the chunks so far: the loss and the required gradients, all in the kind of the logits.
pub(super) struct Sums {
    pub(super) loss: Tensor,
    pub(super) hidden: Option<Tensor>,
    pub(super) weight: Option<Tensor>,
    pub(super) bias: Option<Tensor>,
}

impl LinearCrossEntropy {
    /// Adds the loss and the gradients of all chunks to `sums`.
    pub(super) fn sums(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        targets: &Targets,
        mut sums: Sums,
    ) -> Result<Sums> {
        let (vocab, _) = weight.size2()?;
        let (kind, device) = (sums.loss.f_kind()?, hidden.device());
        let tokens = targets.len();
        if tokens == 0 {
            return Ok(sums);
        }
        let chunk = self.chunk_size.unwrap_or_else(|| suggested_chunk(vocab, device));
        // Chunks of about equal length.
        let chunks = (tokens + chunk - 1) / chunk;
        let chunk = (tokens + chunks - 1) / chunks;
        let mut head = Head::new(weight, bias, kind, chunk)?;
        let input_kind = head.input_kind(kind)?;
        let block = match device {
            Device::Cpu if input_kind != kind => (CACHED / vocab).clamp(1, chunk),
            _ => chunk,
        };
        let buffer = Tensor::f_empty([block, vocab], (kind, device))?;
        let mut start = 0;
        while start < tokens {
            let len = chunk.min(tokens - start);
            let rows = targets.rows(hidden, start, len)?.f_to_kind(input_kind)?;
            let gradient = match head.low_logits(&rows)? {
                None => {
                    let mut logits = buffer.f_narrow(0, 0, len)?;
                    head.logits(&rows, &mut logits)?;
                    self.block(logits, start, targets, &mut sums)?
                }
                // Converted block by block to the kind of the logits; their gradient is converted back.
                Some(low) => {
                    let mut wanted = false;
                    for at in (0..len).step_by(block as usize) {
                        let mut low = low.f_narrow(0, at, block.min(len - at))?;
                        let mut logits = buffer.f_narrow(0, 0, low.size2()?.0)?;
                        logits.f_copy_(&low)?;
                        head.add_bias(&mut logits)?;
                        if let Some(gradient) =
                            self.block(logits, start + at, targets, &mut sums)?
                        {
                            low.f_copy_(&gradient)?;
                            wanted = true;
                        }
                    }
                    wanted.then_some(low)
                }
            };
            if let Some(gradient) = gradient {
                let part = match (&sums.hidden, &targets.kept) {
                    (None, _) => None,
                    (Some(all), None) => Some(all.f_narrow(0, start, len)?),
                    (Some(all), Some(_)) => {
                        Some(all.f_new_empty([len, all.size()[1]], (kind, device))?)
                    }
                };
                let written = part.as_ref().map(Tensor::shallow_clone);
                head.backward(&rows, &gradient, written, sums.weight.as_mut())?;
                if let (Some(all), Some(kept), Some(part)) =
                    (&mut sums.hidden, &targets.kept, &part)
                {
                    let _ = all.f_index_copy_(0, &kept.f_narrow(0, start, len)?, part)?;
                }
            }
            start += len;
        }
        if let (Some(hidden), Some(weights)) = (&mut sums.hidden, &targets.weights) {
            let _ = hidden.f_mul_(weights)?;
        }
        if self.logit_scale != 1. {
            for sum in [&mut sums.hidden, &mut sums.weight, &mut sums.bias].into_iter().flatten() {
                let _ = sum.f_mul_scalar_(self.logit_scale)?;
            }
        }
        Ok(sums)
    }

    /// [`chunk`](Self::chunk) for the targets from `start` on; adds the gradient of the bias to the sums too.
    fn block(
        &self,
        logits: Tensor,
        start: i64,
        targets: &Targets,
        sums: &mut Sums,
    ) -> Result<Option<Tensor>> {
        let (kind, len) = (logits.f_kind()?, logits.size2()?.0);
        let classes = targets.classes.f_narrow(0, start, len)?;
        let weights = targets.weights.as_ref().map(|w| w.f_narrow(0, start, len)).transpose()?;
        let Some(mut gradient) = self.chunk(logits, &classes, weights.as_ref(), sums)? else {
            return Ok(None);
        };
        // If only the hidden states need a gradient, masking it once at the end is cheaper.
        if let (Some(weights), true) = (&weights, sums.trains_head()) {
            let _ = gradient.f_mul_(weights)?;
        }
        if let Some(bias) = &mut sums.bias {
            let _ = bias.f_add_(&gradient.f_sum_dim_intlist([0i64].as_slice(), false, kind)?)?;
        }
        Ok(Some(gradient))
    }

    /// Adds the loss of a chunk to the sums, and returns its gradient with respect to the scaled logits, before the cap.
    /// It overwrites the logits.
    fn chunk(
        &self,
        mut logits: Tensor,
        classes: &Tensor,
        weights: Option<&Tensor>,
        sums: &mut Sums,
    ) -> Result<Option<Tensor>> {
        let kind = logits.f_kind()?;
        let smoothing = self.label_smoothing;
        let vocab = logits.size2()?.1 as f64;
        if self.logit_scale != 1. {
            let _ = logits.f_mul_scalar_(self.logit_scale)?;
        }
        if let Some(cap) = self.logit_cap {
            let _ = logits.f_mul_scalar_(1. / cap)?.f_tanh_()?.f_mul_scalar_(cap)?;
        }
        let mut target = logits.f_gather(1, classes, false)?;
        if smoothing != 0. {
            let mut mean = logits.f_mean_dim([-1i64].as_slice(), true, kind)?;
            target = target.f_mul_scalar(1. - smoothing)?.f_add(&mean.f_mul_scalar_(smoothing)?)?;
        }
        // The softmax in one kernel. Its largest value is at least 1/vocabulary, so that the logarithm of it, and
        // thereby of the denominator, is exact.
        let mut largest = logits.f_amax([-1i64], true)?;
        let in_place = logits.device() == Device::Cpu && self.logit_cap.is_none();
        let mut softmax = if in_place {
            logits.f_internal_softmax_out(&logits, -1, false)?
        } else {
            logits.f_softmax(-1, kind)?
        };
        let denominator = largest.f_sub_(&softmax.f_amax([-1i64], true)?.f_log_()?)?;
        let mut losses = denominator.f_sub(&target)?;
        if self.z_loss != 0. {
            let _ = losses.f_add_(&denominator.f_square()?.f_mul_scalar_(self.z_loss)?)?;
        }
        if let Some(weights) = weights {
            let _ = losses.f_mul_(weights)?;
        }
        let _ = sums.loss.f_add_(&losses.f_sum(kind)?)?;
        if !sums.trains_head() && sums.hidden.is_none() {
            return Ok(None);
        }
        if self.z_loss != 0. {
            let factor = denominator.f_mul_scalar(2. * self.z_loss)?.f_add_scalar_(1.)?;
            let _ = softmax.f_mul_(&factor)?;
        }
        let _ = softmax.f_scatter_add_(1, classes, &target.f_full_like(smoothing - 1.)?)?;
        if smoothing != 0. {
            let _ = softmax.f_sub_scalar_(smoothing / vocab)?;
        }
        if let Some(cap) = self.logit_cap {
            let slope = logits.f_square_()?.f_mul_scalar_(-1. / (cap * cap))?.f_add_scalar_(1.)?;
            let _ = softmax.f_mul_(&slope)?;
        }
        Ok(Some(softmax))
    }
}

impl Sums {
    fn trains_head(&self) -> bool {
        self.weight.is_some() || self.bias.is_some()
    }
}

/// The default number of tokens per chunk: enough for matrix products at full speed, and no more, since the logits of a
/// chunk take the memory: 32 MB for a vocabulary of 32,000 on a CPU, where they should also stay in the cache.
fn suggested_chunk(vocab: i64, device: Device) -> i64 {
    let (elements, least) = match device {
        Device::Cpu => (1 << 23, 128),
        _ => (1 << 26, 256),
    };
    (elements / vocab.max(1)).max(least) / 64 * 64
}
