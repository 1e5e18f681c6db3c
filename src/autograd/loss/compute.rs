//! The loss as a scalar with its gradients.

use tch::{no_grad, Device, Kind, Tensor};

use super::chunks::{logits_kind, Gradients};
use super::head_weight::HeadWeight;
use super::linear_cross_entropy::{LinearCrossEntropy, Reduction};
use super::targets::{Count, Targets};
use crate::autograd::known_gradient::{inner_product, with_value};
use crate::device::grad_mode::is_recorded;
use crate::error::{refuse, Result};
use crate::kernels::number::{self, WithNumber};
use crate::storage::info::is_float;

impl LinearCrossEntropy {
    /// The loss of hidden states `[…, hidden size]` through a head with `weight` `[vocabulary, hidden size]` and `bias`
    /// `[vocabulary]`, of the same kind and on the same device, against integer `targets` `[…]`.
    ///
    /// # Errors
    /// `ShapeMismatch`, `KindMismatch`; `InvalidArgument` for settings out of range, and for targets on the CPU that
    /// are not in the vocabulary; `Torch`. Targets on a GPU are not looked at from here: one that is no class and not
    /// ignored makes the loss NaN with the fused functions there, and is libtorch's error without them.
    pub fn compute(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        targets: &Tensor,
    ) -> Result<Tensor> {
        self.compute_without(
            hidden,
            &HeadWeight::Plain(weight.shallow_clone()),
            bias,
            targets,
            None,
        )
    }

    /// [`compute`](Self::compute) that also ignores the tokens where `left_out`, Bool, of the targets' shape and on the
    /// device of the hidden states, is true: for those that are known there only, and would have to be waited for.
    pub(crate) fn compute_without(
        &self,
        hidden: &Tensor,
        weight: &HeadWeight,
        bias: Option<&Tensor>,
        targets: &Tensor,
        left_out: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.check()?;
        check_tensors(hidden, weight, bias, targets)?;
        let (vocab, size) = weight.size2()?;
        let trained = weight.plain();
        let kind = logits_kind(hidden)?;
        let device = hidden.device();
        let wanted = [Some(hidden), trained, bias].map(|t| t.map_or(Ok(false), is_recorded));
        let [train_hidden, train_weight, train_bias] = wanted;
        let wanted = [train_hidden?, train_weight?, train_bias?];
        let by_row = self.reduction == Reduction::SumPerRow;
        if by_row && (wanted[1] || wanted[2]) {
            refuse!(
                Unsupported,
                "the head trains, and its gradient is one for all rows: there is no loss per row (`SumPerRow`). Compute \
                 a loss for the rows of each, or leave the head out of what trains"
            );
        }
        let of_rows = by_row.then(|| RowOfToken::new(targets)).transpose()?;
        let targets =
            no_grad(|| Targets::new(targets, self.ignore_index, vocab, kind, device, left_out))?;
        let rows = hidden.f_reshape([-1, size])?;
        let (rows, of_rows) = match &targets.kept {
            None => (rows, of_rows),
            Some(kept) => {
                let of_rows = of_rows.map(|of_rows| of_rows.of(kept)).transpose()?;
                (rows.f_index_select(0, kept)?, of_rows)
            }
        };
        let of_rows = of_rows.map(|of_rows| of_rows.on(device)).transpose()?;
        let (loss, sums) = no_grad(|| -> Result<_> {
            let options = (kind, device);
            let zeros = |wanted: bool, shape: &[i64]| {
                wanted.then(|| Tensor::f_zeros(shape, options)).transpose()
            };
            let mut sums = Gradients {
                // Every row is written.
                hidden: wanted[0].then(|| Tensor::f_empty(rows.size(), options)).transpose()?,
                weight: zeros(wanted[1], &[vocab, size])?,
                bias: zeros(wanted[2], &[vocab])?,
            };
            let losses = self.losses(&rows.f_detach()?, weight, bias, &targets, &mut sums)?;
            if let Some(of_rows) = &of_rows {
                return Ok((of_rows.sums(&losses)?, sums));
            }
            Ok((self.reduced(&losses.f_sum(kind)?, &targets.count)?, sums))
        })?;
        if let (Some(of_rows), Some(gradient)) = (&of_rows, &sums.hidden) {
            let products = rows.f_to_kind(kind)?.f_mul(gradient)?;
            let products = products.f_sum_dim_intlist([-1i64].as_slice(), false, kind)?;
            return with_value(of_rows.sums(&products)?, &loss);
        }
        let rows = Some(&rows);
        let pairs = [(rows, &sums.hidden), (trained, &sums.weight), (bias, &sums.bias)];
        let pairs: Vec<_> =
            pairs.iter().filter_map(|(t, gradient)| Some((*t)?).zip(gradient.as_ref())).collect();
        if pairs.is_empty() {
            return Ok(loss);
        }
        with_value(self.reduced(&inner_product(&pairs)?, &targets.count)?, &loss)
    }

    fn reduced(&self, sum: &Tensor, count: &Count) -> Result<Tensor> {
        match (self.reduction, count) {
            (Reduction::Sum | Reduction::SumPerRow, _) => Ok(sum.shallow_clone()),
            (Reduction::SumOver(count), _) => Ok(sum.f_div_number(count)?),
            (Reduction::Mean, Count::Known(count)) => Ok(sum.f_div_number(count.max(1.))?),
            (Reduction::Mean, Count::OnDevice(count)) => Ok(sum.f_div(&count.f_at_least(1.)?)?),
        }
    }
}

/// The row of the targets that each token is in.
struct RowOfToken {
    rows: i64,
    /// `[tokens]`
    of: Tensor,
}

impl RowOfToken {
    fn new(targets: &Tensor) -> Result<Self> {
        let rows = targets.size().first().copied().unwrap_or(1);
        let each = targets.numel() as i64 / rows.max(1);
        let of = number::arange(0, rows, targets.device())?.f_unsqueeze(1)?;
        Ok(RowOfToken { rows, of: of.f_expand([rows, each], false)?.f_reshape([-1])? })
    }

    /// Of these tokens alone.
    fn of(self, kept: &Tensor) -> Result<Self> {
        let of = self.of.f_to_device(kept.device())?.f_index_select(0, kept)?;
        Ok(RowOfToken { of, ..self })
    }

    fn on(self, device: Device) -> Result<Self> {
        Ok(RowOfToken { of: self.of.f_to_device(device)?, ..self })
    }

    /// `[rows]` from numbers of the tokens.
    fn sums(&self, tokens: &Tensor) -> Result<Tensor> {
        let zeros = Tensor::f_zeros([self.rows], (tokens.f_kind()?, tokens.device()))?;
        Ok(zeros.f_index_add(0, &self.of, &tokens.f_reshape([-1])?)?)
    }
}

fn check_tensors(
    hidden: &Tensor,
    weight: &HeadWeight,
    bias: Option<&Tensor>,
    targets: &Tensor,
) -> Result<()> {
    let (states, head) = (hidden.size(), weight.size());
    if head.len() != 2 || states.is_empty() || states.last() != head.last() {
        refuse!(
            ShapeMismatch,
            "hidden states of shape {states:?} and a head of shape {head:?}, expected […, hidden size] and \
             [vocabulary, hidden size]"
        );
    }
    if let Some(size) = bias.map(Tensor::size).filter(|size| *size != head[..1]) {
        refuse!(ShapeMismatch, "the head's bias has shape {size:?}, expected {:?}", &head[..1]);
    }
    let (found, expected) = (targets.size(), &states[..states.len() - 1]);
    if found != expected {
        refuse!(
            ShapeMismatch,
            "targets of shape {found:?} for hidden states of shape {states:?}, expected {expected:?}"
        );
    }
    let kind = hidden.f_kind()?;
    if !is_float(kind) {
        refuse!(KindMismatch, "hidden states in {kind:?}, expected a floating-point kind");
    }
    let bias = bias.map(Tensor::f_kind).transpose()?;
    for (name, found) in [("weight", Some(weight.kind()?)), ("bias", bias)] {
        if let Some(found) = found.filter(|found| *found != kind) {
            refuse!(
                KindMismatch,
                "the head's {name} is in {found:?}, the hidden states in {kind:?}"
            );
        }
    }
    match targets.f_kind()? {
        Kind::Int64 | Kind::Int | Kind::Int16 | Kind::Int8 | Kind::Uint8 => Ok(()),
        other => refuse!(
            KindMismatch,
            "targets in {other:?}, expected integers: probabilities are not implemented"
        ),
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::autograd::loss::IGNORE_INDEX;

    /// Documents on a device leave tokens out of labels on the CPU; here both are on the CPU.
    #[test]
    fn a_token_that_is_left_out_counts_as_one_that_is_ignored() {
        tch::set_num_threads(1);
        tch::manual_seed(7);
        let options = (Kind::Float, Device::Cpu);
        let [hidden, weight] = [[12, 8], [30, 8]]
            .map(|shape: [i64; 2]| Tensor::randn(shape, options).set_requires_grad(true));
        let bias = Tensor::randn([30], options).set_requires_grad(true);
        let some = Tensor::arange(12, (Kind::Int64, Device::Cpu)).remainder(30);
        let ignored = some.masked_fill(&some.remainder(3).eq(1), IGNORE_INDEX);
        for targets in [some, ignored] {
            for left_out in [vec![0_i64, 4, 5, 11], vec![], (0..12).collect()] {
                let left_out = Tensor::zeros([12], (Kind::Bool, Device::Cpu)).index_fill(
                    0,
                    &Tensor::from_slice(&left_out),
                    1,
                );
                let masked = targets.masked_fill(&left_out, IGNORE_INDEX);
                for loss in [
                    LinearCrossEntropy::default(),
                    LinearCrossEntropy::default().reduction(Reduction::Sum).chunk_size(5),
                    LinearCrossEntropy::default().label_smoothing(0.1).z_loss(0.2).logit_cap(3.),
                ] {
                    let all = |targets: &Tensor, left_out: Option<&Tensor>| {
                        let loss = loss
                            .compute_without(
                                &hidden,
                                &HeadWeight::Plain(weight.shallow_clone()),
                                Some(&bias),
                                targets,
                                left_out,
                            )
                            .unwrap();
                        let mut all = vec![loss.detach()];
                        let inputs = [&hidden, &weight, &bias];
                        all.extend(Tensor::run_backward(&[loss], &inputs, false, false));
                        all
                    };
                    let expected = all(&masked, None);
                    for (found, expected) in all(&targets, Some(&left_out)).iter().zip(&expected) {
                        assert!(found.allclose(expected, 1e-5, 1e-6, false), "{loss:?}");
                    }
                }
            }
        }
    }
}
