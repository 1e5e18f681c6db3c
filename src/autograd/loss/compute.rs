//! The loss as a scalar with its gradients.

use tch::{no_grad, Kind, Tensor};

use super::chunks::Sums;
use super::linear_cross_entropy::{LinearCrossEntropy, Reduction};
use super::targets::{Count, Targets};
use crate::autograd::known_gradient::{inner_product, is_recorded, with_value};
use crate::error::{refuse, Result};

impl LinearCrossEntropy {
    /// The loss of hidden states `[…, hidden size]` through a head with `weight` `[vocabulary, hidden size]` and `bias`
    /// `[vocabulary]`, of the same kind and on the same device, against integer `targets` `[…]`.
    ///
    /// # Errors
    /// `ShapeMismatch`, `KindMismatch`; `InvalidArgument` for settings out of range, and for targets on the CPU that are
    /// not in the vocabulary; `Torch`.
    pub fn compute(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        targets: &Tensor,
    ) -> Result<Tensor> {
        self.check()?;
        check_tensors(hidden, weight, bias, targets)?;
        let (vocab, size) = weight.size2()?;
        let kind = match hidden.f_kind()? {
            Kind::Double => Kind::Double,
            _ => Kind::Float,
        };
        let device = hidden.device();
        let flat = hidden.f_reshape([-1, size])?;
        let wanted = [Some(hidden), Some(weight), bias].map(|t| t.map_or(Ok(false), is_recorded));
        let [train_hidden, train_weight, train_bias] = wanted;
        let wanted = [train_hidden?, train_weight?, train_bias?];
        let (targets, sums) = no_grad(|| -> Result<_> {
            let targets = Targets::new(targets, self.ignore_index, vocab, kind, device)?;
            let zeros = |wanted: bool, shape: &[i64]| {
                wanted.then(|| Tensor::f_zeros(shape, (kind, device))).transpose()
            };
            let sums = Sums {
                loss: Tensor::f_zeros([0; 0], (kind, device))?,
                hidden: zeros(wanted[0], &flat.size())?,
                weight: zeros(wanted[1], &[vocab, size])?,
                bias: zeros(wanted[2], &[vocab])?,
            };
            let sums = self.sums(&flat.f_detach()?, weight, bias, &targets, sums)?;
            Ok((targets, sums))
        })?;
        let loss = self.reduced(&sums.loss, &targets.count)?;
        let flat = Some(&flat);
        let pairs = [(flat, &sums.hidden), (Some(weight), &sums.weight), (bias, &sums.bias)];
        let pairs: Vec<_> =
            pairs.iter().filter_map(|(t, gradient)| Some((*t)?).zip(gradient.as_ref())).collect();
        if pairs.is_empty() {
            return Ok(loss);
        }
        with_value(self.reduced(&inner_product(&pairs)?, &targets.count)?, &loss)
    }

    fn reduced(&self, sum: &Tensor, count: &Count) -> Result<Tensor> {
        match (self.reduction, count) {
            (Reduction::Sum, _) => Ok(sum.shallow_clone()),
            (Reduction::SumOver(count), _) => Ok(sum.f_div_scalar(count)?),
            (Reduction::Mean, Count::Known(count)) => Ok(sum.f_div_scalar(count.max(1.))?),
            (Reduction::Mean, Count::OnDevice(count)) => Ok(sum.f_div(&count.f_clamp_min(1.)?)?),
        }
    }
}

fn check_tensors(
    hidden: &Tensor,
    weight: &Tensor,
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
    if !matches!(kind, Kind::Float | Kind::Double | Kind::BFloat16 | Kind::Half) {
        refuse!(KindMismatch, "hidden states in {kind:?}, expected a floating-point kind");
    }
    for (name, tensor) in [("weight", Some(weight)), ("bias", bias)] {
        if let Some(found) = tensor.map(Tensor::f_kind).transpose()?.filter(|found| *found != kind)
        {
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
