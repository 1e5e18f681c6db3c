//! A few elements of every frozen variable, by which writes are noticed that raise no version.
//!
//! libtorch counts the writes to a tensor, except for those through C++'s `data()`, as `nn::Sgd` makes them. A sum over
//! the base would find each of them, but would read the whole model whenever an adapter is attached.

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// The number of elements that are remembered of each variable.
const KEPT: i64 = 8;

/// Elements at equal distances, in f64, which holds those of every kind.
type Sample = Vec<f64>;

/// The remembered elements, by the index of the variable.
#[derive(Debug, Default)]
pub(crate) struct Samples(HashMap<usize, Sample>);

impl Samples {
    /// Remembers the present elements of these variables, in place of the former.
    pub(crate) fn remember(&mut self, tensors: &[(usize, Tensor)]) -> Result<()> {
        self.0.extend(samples(tensors)?);
        Ok(())
    }

    /// The first variable whose elements are not those remembered.
    pub(crate) fn first_changed(&self, tensors: &[(usize, Tensor)]) -> Result<Option<usize>> {
        let now = samples(tensors)?;
        let changed = |(index, _): &&(usize, Tensor)| match (self.0.get(index), now.get(index)) {
            (Some(before), Some(now)) => !is_same(before, now),
            _ => false,
        };
        Ok(tensors.iter().find(changed).map(|(index, _)| *index))
    }

    /// The first variable whose elements are not those remembered, each cast to the kind that it has now.
    pub(crate) fn first_not_cast(&self, tensors: &[(usize, Tensor)]) -> Result<Option<usize>> {
        let now = samples(tensors)?;
        for (index, tensor) in tensors {
            let (Some(before), Some(now)) = (self.0.get(index), now.get(index)) else { continue };
            let (before, now) = (Tensor::from_slice(before), Tensor::from_slice(now));
            let kind = tensor.f_kind()?;
            if before.size() != now.size() || !is_cast(&before, &now.f_to_kind(kind)?)? {
                return Ok(Some(*index));
            }
        }
        Ok(None)
    }
}

fn is_same(a: &Sample, b: &Sample) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// True if `now` is `before` in another kind, directly or by way of a narrower one, as after `half` and `float`.
pub(crate) fn is_cast(before: &Tensor, now: &Tensor) -> Result<bool> {
    let (kind, device) = (now.f_kind()?, now.device());
    let before = before.f_to_device(device)?;
    for narrow in [kind, Kind::Half, Kind::BFloat16, Kind::Float] {
        if now.f_equal(&before.f_to_kind(narrow)?.f_to_kind(kind)?)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads the elements with one transfer per kind and device.
fn samples(tensors: &[(usize, Tensor)]) -> Result<HashMap<usize, Sample>> {
    let mut groups: HashMap<(Kind, Device), Vec<(usize, Tensor)>> = HashMap::new();
    for (index, tensor) in tensors {
        let count = (tensor.numel() as i64).min(KEPT);
        let step = (tensor.numel() as i64 - 1) / (count - 1).max(1);
        let elements = tensor.f_contiguous()?.f_as_strided([count], [step.max(1)], None)?;
        groups.entry((tensor.f_kind()?, tensor.device())).or_default().push((*index, elements));
    }
    let mut found = HashMap::with_capacity(tensors.len());
    for group in groups.into_values() {
        let pieces: Vec<&Tensor> = group.iter().map(|(_, elements)| elements).collect();
        let all = Tensor::f_cat(&pieces, 0)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
        let mut values = vec![0.; all.numel()];
        all.f_copy_data(&mut values, all.numel())?;
        let mut rest = values.as_slice();
        for (index, elements) in &group {
            let (own, others) = rest.split_at(elements.numel());
            found.insert(*index, own.to_vec());
            rest = others;
        }
    }
    Ok(found)
}
