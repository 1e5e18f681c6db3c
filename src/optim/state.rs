//! The state of an optimiser between steps: flat buffers, and the number of updates per tensor.

use std::collections::HashMap;
use std::ops::Range;

use tch::{Kind, Tensor};

use super::algorithm::Algorithm;
use super::gradients::Gradients;
use crate::adapter::flat::{copy_of, FlatParams};
use crate::error::{refusal, refuse, Result};

#[derive(Debug)]
pub(super) struct State {
    names: &'static [&'static str],
    /// One flat buffer per name, made at the first step.
    buffers: Vec<Tensor>,
    /// Updates per slot: tensors that got no gradient lag behind, as in PyTorch.
    steps: Vec<i64>,
}

impl State {
    pub(super) fn new(algorithm: Algorithm, slots: usize) -> Self {
        State { names: algorithm.buffers(), buffers: Vec::new(), steps: vec![0; slots] }
    }

    /// One step, with one call per run of neighbouring slots with the same settings and history: usually one call.
    pub(super) fn update(
        &mut self,
        flat: &mut FlatParams,
        gradients: &Gradients,
        settings: impl Fn(usize) -> (usize, Algorithm, f64),
    ) -> Result<()> {
        let Some(gradient) = gradients.flat() else { return Ok(()) };
        self.prepare(flat)?;
        let slots = flat.slots().len();
        let key = |slot: usize| (gradients.is_present(slot), self.steps[slot], settings(slot).0);
        let mut runs: Vec<Range<usize>> = Vec::new();
        for slot in 0..slots {
            match runs.last_mut() {
                Some(run) if key(run.start) == key(slot) => run.end = slot + 1,
                _ => runs.push(slot..slot + 1),
            }
        }
        for run in runs.into_iter().filter(|run| gradients.is_present(run.start)) {
            let (_, algorithm, lr) = settings(run.start);
            let step = self.steps[run.start] + 1;
            let mut params = flat.range(flat.master(), run.clone())?;
            let gradient = flat.range(gradient, run.clone())?;
            let mut buffers = Vec::with_capacity(self.buffers.len());
            for buffer in &self.buffers {
                buffers.push(flat.range(buffer, run.clone())?);
            }
            algorithm.update(&mut params, &gradient, &mut buffers, step, lr)?;
            self.steps[run].fill(step);
        }
        flat.publish()
    }

    pub(super) fn save(
        &mut self,
        flat: &FlatParams,
        variables: &[String],
    ) -> Result<Vec<(String, Tensor)>> {
        self.prepare(flat)?;
        let mut state = Vec::new();
        for (slot, variable) in variables.iter().enumerate() {
            state.push((format!("{variable}.step"), Tensor::from(self.steps[slot])));
            for (name, buffer) in self.names.iter().zip(&self.buffers) {
                let value = copy_of(&flat.view_of(buffer, slot)?)?;
                state.push((format!("{variable}.{name}"), value));
            }
        }
        Ok(state)
    }

    pub(super) fn load(
        &mut self,
        flat: &FlatParams,
        variables: &[String],
        state: &[(String, Tensor)],
    ) -> Result<()> {
        let mut given: HashMap<&str, &Tensor> =
            state.iter().map(|(key, tensor)| (key.as_str(), tensor)).collect();
        let mut steps = Vec::with_capacity(variables.len());
        let mut buffers: Vec<Tensor> = Vec::with_capacity(self.names.len());
        for _ in self.names {
            buffers.push(flat.master().f_zeros_like()?);
        }
        for (slot, variable) in variables.iter().enumerate() {
            let step = take(&mut given, format!("{variable}.step"), &[])?;
            steps.push(step.f_to_kind(Kind::Int64)?.f_int64_value(&[])?);
            for (name, buffer) in self.names.iter().zip(&buffers) {
                let shape = &flat.slots()[slot].shape;
                let value = take(&mut given, format!("{variable}.{name}"), shape)?;
                flat.view_of(buffer, slot)?.f_copy_(value)?;
            }
        }
        if let Some(extra) = given.keys().min() {
            refuse!(
                UnexpectedKeys,
                "the optimizer state holds '{extra}', which this adapter or algorithm does not use"
            );
        }
        self.steps = steps;
        self.buffers = buffers;
        Ok(())
    }

    /// Creates the buffers, or moves them to the device and kind of the masters.
    fn prepare(&mut self, flat: &FlatParams) -> Result<()> {
        if self.buffers.len() != self.names.len() {
            for _ in self.names {
                self.buffers.push(flat.master().f_zeros_like()?);
            }
        }
        let (kind, device) = (flat.master().f_kind()?, flat.master().device());
        for buffer in &mut self.buffers {
            *buffer = buffer.f_to_device(device)?.f_to_kind(kind)?;
        }
        Ok(())
    }
}

fn take<'a>(
    given: &mut HashMap<&str, &'a Tensor>,
    key: String,
    shape: &[i64],
) -> Result<&'a Tensor> {
    let tensor = given.remove(key.as_str()).ok_or_else(|| {
        refusal!(MissingKeys, "the optimizer state has no '{key}': is it from another run?")
    })?;
    if tensor.size() != shape {
        refuse!(
            ShapeMismatch,
            "the optimizer state '{key}' has shape {:?}, expected {shape:?}",
            tensor.size()
        );
    }
    Ok(tensor)
}
