//! The loss and its gradients, chunk by chunk, in a reused buffer.

use tch::{Device, Kind, Tensor};

use super::head::Head;
use super::head_weight::HeadWeight;
use super::linear_cross_entropy::LinearCrossEntropy;
use super::targets::Targets;
use crate::error::Result;
use crate::kernels::fused;
use crate::kernels::fused_forms::CrossEntropy;

/// The number of logits that stay in a CPU's cache: the size of a block if logits are converted.
const CACHED: i64 = 1 << 21;

/// Sums over the chunks so far: the required gradients, all in the kind of the logits.
pub(super) struct Gradients {
    /// Of the computed tokens.
    pub(super) hidden: Option<Tensor>,
    pub(super) weight: Option<Tensor>,
    pub(super) bias: Option<Tensor>,
}

/// Numbers per token, `[tokens, 1]`, that chunks leave behind. What can be computed of all tokens at the end is not
/// computed chunk by chunk.
struct PerToken {
    /// The largest logit.
    largest: Tensor,
    /// The largest value of the softmax.
    peak: Tensor,
    /// The logit of the target, smoothed.
    target: Tensor,
    /// The number that is added to the softmax at the target.
    subtracted: Tensor,
}

impl LinearCrossEntropy {
    /// The losses `[tokens, 1]` of the tokens with these hidden states, `[tokens, size]`. Adds the gradients of their sum.
    pub(super) fn losses(
        &self,
        hidden: &Tensor,
        weight: &HeadWeight,
        bias: Option<&Tensor>,
        targets: &Targets,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let vocab = weight.size2()?.0;
        let (kind, device) = (logits_kind(hidden)?, hidden.device());
        let tokens = targets.len();
        if tokens == 0 {
            return Ok(Tensor::f_zeros([0, 1], (kind, device))?);
        }
        // Each chunk computes the values of a head in few bits anew.
        let more = if weight.plain().is_some() { 1 } else { 2 };
        let chunk = self.chunk_size.unwrap_or_else(|| more * suggested_chunk(vocab, device));
        // Chunks of about equal length.
        let chunks = (tokens + chunk - 1) / chunk;
        let chunk = (tokens + chunks - 1) / chunks;
        let mut head = Head::new(weight, bias, (kind, device), chunk)?;
        let input_kind = head.input_kind(kind)?;
        let block = match device {
            Device::Cpu if input_kind != kind => (CACHED / vocab).clamp(1, chunk),
            _ => chunk,
        };
        let buffer = Tensor::f_empty([block, vocab], (kind, device))?;
        // CUDA's products write f32, and read a gradient in the weight's kind.
        let writes_low = device.is_cuda() && input_kind != kind && gradients.hidden.is_some();
        let low = match writes_low && fused::is_for(hidden)? {
            true => Some(Tensor::f_empty([block, vocab], (input_kind, device))?),
            false => None,
        };
        let per_token = |tokens: i64| Tensor::f_empty([tokens, 1], (kind, device));
        let all = PerToken {
            largest: per_token(tokens)?,
            peak: per_token(tokens)?,
            target: per_token(tokens)?,
            subtracted: per_token(block)?.f_fill_(self.label_smoothing - 1.)?,
        };
        let mut start = 0;
        while start < tokens {
            let len = chunk.min(tokens - start);
            let rows = hidden.f_narrow(0, start, len)?.f_to_kind(input_kind)?;
            let gradient = match head.low_logits(&rows)? {
                None => {
                    let mut logits = buffer.f_narrow(0, 0, len)?;
                    head.logits(&rows, &mut logits)?;
                    let into = low.as_ref().map(|low| low.f_narrow(0, 0, len)).transpose()?;
                    let place = (None, into.as_ref());
                    if self.fused(&logits, place, start, targets, &all, gradients)? {
                        gradients.hidden.is_some().then(|| into.unwrap_or(logits))
                    } else {
                        self.block(logits, start, targets, &all, gradients)?
                    }
                }
                Some(low)
                    if self.fused(
                        &low,
                        (head.bias(), None),
                        start,
                        targets,
                        &all,
                        gradients,
                    )? =>
                {
                    gradients.hidden.is_some().then_some(low)
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
                            self.block(logits, start + at, targets, &all, gradients)?
                        {
                            low.f_copy_(&gradient)?;
                            wanted = true;
                        }
                    }
                    wanted.then_some(low)
                }
            };
            if let Some(gradient) = gradient {
                let part = gradients.hidden.as_ref().map(|all| all.f_narrow(0, start, len));
                head.backward(&rows, &gradient, part.transpose()?, gradients.weight.as_mut())?;
            }
            start += len;
        }
        if let (Some(hidden), Some(weights)) = (&mut gradients.hidden, &targets.weights) {
            let _ = hidden.f_mul_(weights)?;
        }
        if self.logit_scale != 1. {
            let Gradients { hidden, weight, bias } = gradients;
            for sum in [hidden, weight, bias].into_iter().flatten() {
                let _ = sum.f_mul_scalar_(self.logit_scale)?;
            }
        }
        let denominator = all.denominator(0, tokens)?;
        let mut losses = denominator.f_sub(&all.target)?;
        if self.z_loss != 0. {
            let _ = losses.f_add_(&denominator.f_square()?.f_mul_scalar_(self.z_loss)?)?;
        }
        if let Some(weights) = &targets.weights {
            let _ = losses.f_mul_(weights)?;
        }
        Ok(losses)
    }

    /// [`block`](Self::block) in one pass, which also takes logits in the weight's kind, without the bias: true if it
    /// was computed; the logits, or the tensor beside the bias, are their gradient if it is wanted. For a frozen head.
    fn fused(
        &self,
        logits: &Tensor,
        (bias, into): (Option<&Tensor>, Option<&Tensor>),
        start: i64,
        targets: &Targets,
        all: &PerToken,
        gradients: &Gradients,
    ) -> Result<bool> {
        if gradients.weight.is_some() || gradients.bias.is_some() {
            return Ok(false);
        }
        let len = logits.size2()?.0;
        let own = |numbers: &Tensor| numbers.f_narrow(0, start, len);
        let columns = [own(&all.largest)?, own(&all.peak)?, own(&all.target)?];
        let how = CrossEntropy {
            bias,
            scale: self.logit_scale,
            cap: self.logit_cap,
            smoothing: self.label_smoothing,
            z_loss: self.z_loss,
            wanted: gradients.hidden.is_some(),
            into,
        };
        fused::cross_entropy(logits, &own(&targets.classes)?, &columns, how)
    }

    /// [`chunk`](Self::chunk) for the tokens from `start` on; adds the gradient of the bias too.
    fn block(
        &self,
        logits: Tensor,
        start: i64,
        targets: &Targets,
        all: &PerToken,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor>> {
        let (kind, len) = (logits.f_kind()?, logits.size2()?.0);
        let classes = targets.classes.f_narrow(0, start, len)?;
        let trains_head = gradients.weight.is_some() || gradients.bias.is_some();
        let wanted = trains_head || gradients.hidden.is_some();
        let Some(mut gradient) = self.chunk(logits, start, &classes, all, wanted)? else {
            return Ok(None);
        };
        // If only the hidden states need a gradient, masking it once at the end is cheaper.
        if let (Some(weights), true) = (&targets.weights, trains_head) {
            let _ = gradient.f_mul_(&weights.f_narrow(0, start, len)?)?;
        }
        if let Some(bias) = &mut gradients.bias {
            let _ = bias.f_add_(&gradient.f_sum_dim_intlist([0i64].as_slice(), false, kind)?)?;
        }
        Ok(Some(gradient))
    }

    /// Leaves the numbers per token of a chunk, and returns the gradient with respect to the scaled logits, before the
    /// cap, if it is `wanted`. It overwrites the logits.
    fn chunk(
        &self,
        mut logits: Tensor,
        start: i64,
        classes: &Tensor,
        all: &PerToken,
        wanted: bool,
    ) -> Result<Option<Tensor>> {
        let kind = logits.f_kind()?;
        let smoothing = self.label_smoothing;
        let (len, vocab) = logits.size2()?;
        if self.logit_scale != 1. {
            let _ = logits.f_mul_scalar_(self.logit_scale)?;
        }
        if let Some(cap) = self.logit_cap {
            let _ = logits.f_mul_scalar_(1. / cap)?.f_tanh_()?.f_mul_scalar_(cap)?;
        }
        let own = |numbers: &Tensor| numbers.f_narrow(0, start, len);
        let mut target = logits.f_gather_out(&own(&all.target)?, 1, classes, false)?;
        if smoothing != 0. {
            let mut mean = logits.f_mean_dim([-1i64].as_slice(), true, kind)?;
            let mean = mean.f_mul_scalar_(smoothing)?;
            let _ = target.f_mul_scalar_(1. - smoothing)?.f_add_(&mean)?;
        }
        // The softmax in one kernel. Its largest value is at least 1/vocabulary, so that the logarithm of it, and
        // thereby of the denominator, is exact.
        let _ = logits.f_amax_out(&own(&all.largest)?, [-1i64], true)?;
        let mut softmax = if self.logit_cap.is_none() {
            logits.f_internal_softmax_out(&logits, -1, false)?
        } else {
            logits.f_softmax(-1, kind)?
        };
        let _ = softmax.f_amax_out(&own(&all.peak)?, [-1i64], true)?;
        if !wanted {
            return Ok(None);
        }
        if self.z_loss != 0. {
            let mut factor = all.denominator(start, len)?;
            let factor = factor.f_mul_scalar_(2. * self.z_loss)?.f_add_scalar_(1.)?;
            let _ = softmax.f_mul_(&factor)?;
        }
        let _ = softmax.f_scatter_add_(1, classes, &all.subtracted.f_narrow(0, 0, len)?)?;
        if smoothing != 0. {
            let _ = softmax.f_sub_scalar_(smoothing / vocab as f64)?;
        }
        if let Some(cap) = self.logit_cap {
            let slope = logits.f_square_()?.f_mul_scalar_(-1. / (cap * cap))?.f_add_scalar_(1.)?;
            let _ = softmax.f_mul_(&slope)?;
        }
        Ok(Some(softmax))
    }
}

impl PerToken {
    /// The logarithm of the softmax's denominator.
    fn denominator(&self, start: i64, len: i64) -> Result<Tensor> {
        let own = |numbers: &Tensor| numbers.f_narrow(0, start, len);
        Ok(own(&self.largest)?.f_sub(&own(&self.peak)?.f_log()?)?)
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

/// The kind of logits and losses.
pub(super) fn logits_kind(hidden: &Tensor) -> Result<Kind> {
    Ok(if hidden.f_kind()? == Kind::Double { Kind::Double } else { Kind::Float })
}
