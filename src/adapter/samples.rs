//! A few elements of every frozen variable, by which writes are noticed that raise no version.
//!
//! libtorch counts the writes to a tensor, except for those through C++'s `data()`, as `nn::Sgd` makes them. A sum over
//! the base would find each of them, but would read the whole model whenever an adapter is attached.
#![allow(unsafe_code)]

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::storage::info::is_float;
use crate::storage::safetensors::bytes_of;

/// The number of elements that are remembered of each variable.
const KEPT: usize = 8;

/// Elements at equal distances, as bytes; those behind the last are 0.
#[derive(Debug, PartialEq, Eq)]
struct Sample {
    kind: Kind,
    count: usize,
    bytes: [u8; KEPT * 8],
}

/// The remembered elements, by the index of the variable.
#[derive(Debug, Default)]
pub(crate) struct Samples(HashMap<usize, Sample>);

impl Samples {
    /// Remembers the present elements of these variables, in place of the former.
    pub(crate) fn remember(&mut self, tensors: &[(usize, &Tensor)]) -> Result<()> {
        self.0.extend(samples(tensors)?);
        Ok(())
    }

    /// The remembered elements as bytes, in the order of the variables, but for those of `except`.
    #[cfg(feature = "distributed")]
    pub(crate) fn bytes(&self, except: &[usize]) -> impl Iterator<Item = &[u8]> {
        let other = |(variable, _): &(&usize, &Sample)| !except.contains(variable);
        let mut samples: Vec<(&usize, &Sample)> = self.0.iter().filter(other).collect();
        samples.sort_unstable_by_key(|(variable, _)| **variable);
        samples.into_iter().map(|(_, sample)| sample.bytes.as_slice())
    }

    /// The first variable whose elements are not those remembered.
    pub(crate) fn first_changed(&self, tensors: &[(usize, &Tensor)]) -> Result<Option<usize>> {
        let now = samples(tensors)?;
        let changed =
            |(index, now): &&(usize, Sample)| self.0.get(index).is_some_and(|before| before != now);
        Ok(now.iter().filter(changed).map(|(index, _)| *index).min())
    }

    /// The first variable whose elements are not those remembered, each cast to the kind that it has now.
    pub(crate) fn first_not_cast(&self, tensors: &[(usize, &Tensor)]) -> Result<Option<usize>> {
        let mut changed = Vec::new();
        for (index, now) in samples(tensors)? {
            if let Some(before) = self.0.get(&index) {
                if !is_cast(&before.elements()?, &now.elements()?)? {
                    changed.push(index);
                }
            }
        }
        Ok(changed.into_iter().min())
    }
}

impl Sample {
    fn new(kind: Kind, count: usize) -> Self {
        Sample { kind, count, bytes: [0; KEPT * 8] }
    }

    /// The place of each element.
    fn places(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.bytes.chunks_exact_mut(self.kind.elt_size_in_bytes()).take(self.count)
    }

    fn elements(&self) -> Result<Tensor> {
        let bytes = &self.bytes[..self.count * self.kind.elt_size_in_bytes()];
        Ok(Tensor::f_from_data_size(bytes, &[self.count as i64], self.kind)?)
    }
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

/// Reads the elements of the floating-point tensors: those on the host in place, others with one transfer per kind and
/// device.
fn samples(tensors: &[(usize, &Tensor)]) -> Result<Vec<(usize, Sample)>> {
    let mut found = Vec::with_capacity(tensors.len());
    let mut elsewhere: HashMap<(Kind, Device), Vec<(usize, Tensor)>> = HashMap::new();
    for (index, tensor) in tensors {
        let Some(kind) = tensor.f_kind().ok().filter(|kind| is_float(*kind)) else { continue };
        let (device, numel) = (tensor.device(), tensor.numel());
        let count = numel.min(KEPT);
        let step = numel.saturating_sub(1) / count.saturating_sub(1).max(1);
        if device == Device::Cpu && tensor.is_contiguous() {
            let mut sample = Sample::new(kind, count);
            read(tensor, step, &mut sample);
            found.push((*index, sample));
        } else {
            let (count, step) = (count as i64, step.max(1) as i64);
            let elements = tensor.f_contiguous()?.f_as_strided([count], [step], None)?;
            elsewhere.entry((kind, device)).or_default().push((*index, elements));
        }
    }
    for ((kind, _), group) in elsewhere {
        let pieces: Vec<&Tensor> = group.iter().map(|(_, elements)| elements).collect();
        let all = bytes_of(&Tensor::f_cat(&pieces, 0)?.f_to_device(Device::Cpu)?)?;
        let mut elements = all.chunks_exact(kind.elt_size_in_bytes());
        for (index, piece) in &group {
            let mut sample = Sample::new(kind, piece.numel());
            sample.places().zip(&mut elements).for_each(|(place, e)| place.copy_from_slice(e));
            found.push((*index, sample));
        }
    }
    Ok(found)
}

/// Reads every `step`th of the elements of a contiguous tensor on the host. An operation of libtorch for each variable
/// would take as long as all the rest of attaching.
fn read(tensor: &Tensor, step: usize, sample: &mut Sample) {
    let start = tensor.data_ptr().cast::<u8>().cast_const();
    for (index, place) in sample.places().enumerate() {
        let size = place.len();
        // SAFETY: the elements of a contiguous tensor on the host follow each other from its address on, and `index *
        // step` is below their number.
        place.copy_from_slice(unsafe {
            std::slice::from_raw_parts(start.add(index * step * size), size)
        });
    }
}
