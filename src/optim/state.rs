//! The state of an optimiser between steps: flat buffers, and the number of updates per tensor.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::algorithm::{Algorithm, Count};
use super::filled::{are_like, Filled, Run};
use super::numbers::Numbers;
use crate::adapter::flat::{copy_of, FlatParams};
use crate::adapter::weights::Adapter;
use crate::error::{refusal, refuse, Error, ErrorKind, Result};
use crate::kernels::number::WithNumber;
use crate::storage::finite::is_finite;
use crate::storage::info::is_float;

/// The largest number of updates up to which an f64 holds every whole number.
const MOST_STEPS: f64 = (1_i64 << 53) as f64;

#[derive(Debug)]
pub(super) struct State {
    names: &'static [&'static str],
    /// One flat buffer per name, made at the first step.
    buffers: Vec<Tensor>,
    /// Updates per slot: tensors that got no gradient lag behind, as in PyTorch.
    pub(super) steps: Vec<i64>,
    skipping: Option<Skipping>,
    /// The numbers of a step on the device, where steps are captured, or may be.
    pub(super) filled: Option<Filled>,
}

/// Updates that the device may skip, for dynamic loss scaling: the CPU does not know how many there were.
#[derive(Debug)]
struct Skipping {
    /// The number of updates per slot, out of `steps`, that were skipped.
    skipped: Tensor,
    /// Slots of one class have taken part in the same updates, so that as many of theirs were skipped.
    classes: Vec<usize>,
}

impl State {
    pub(super) fn new(algorithm: Algorithm, slots: usize) -> Self {
        let names = algorithm.buffers();
        State { names, buffers: Vec::new(), steps: vec![0; slots], skipping: None, filled: None }
    }

    /// True before the first update.
    #[cfg(feature = "distributed")]
    pub(super) fn is_new(&self) -> bool {
        self.steps.iter().all(|step| *step == 0)
    }

    /// From now on, updates may be skipped.
    pub(super) fn start_skipping(&mut self, device: Device) -> Result<()> {
        self.stop_skipping()?;
        let mut numbers = BTreeMap::new();
        let number = |step: &i64| {
            let next = numbers.len();
            *numbers.entry(*step).or_insert(next)
        };
        let classes = self.steps.iter().map(number).collect();
        let skipped = Tensor::f_zeros([self.steps.len() as i64], (Kind::Double, device))?;
        self.skipping = Some(Skipping { skipped, classes });
        Ok(())
    }

    /// Waits for the device, to know the number of updates.
    pub(super) fn stop_skipping(&mut self) -> Result<()> {
        self.steps = self.done()?;
        self.skipping = None;
        Ok(())
    }

    /// Updates per slot, without those that were skipped.
    fn done(&self) -> Result<Vec<i64>> {
        let Some(Skipping { skipped, .. }) = &self.skipping else { return Ok(self.steps.clone()) };
        let skipped = Vec::<f64>::try_from(&skipped.f_to_device(Device::Cpu)?)?;
        Ok(self.steps.iter().zip(skipped).map(|(step, skipped)| step - skipped as i64).collect())
    }

    /// One step, with one call per run of neighbouring slots with the same settings and history: usually one call. If
    /// `skip` is true, a tensor, it changes nothing.
    pub(super) fn update(
        &mut self,
        adapter: &mut Adapter,
        skip: Option<&Tensor>,
        settings: impl Fn(usize) -> (usize, Algorithm, f64),
    ) -> Result<()> {
        let Adapter { flat, gradients, .. } = adapter;
        let gradient = gradients.flat()?;
        self.prepare(flat)?;
        let slots = flat.slots().len();
        let kind = wide(flat.master().f_kind()?);
        if let Some(Skipping { classes, .. }) = &mut self.skipping {
            let mut numbers = BTreeMap::new();
            for (slot, class) in classes.iter_mut().enumerate() {
                let next = numbers.len();
                *class = *numbers.entry((*class, gradients.is_present(slot))).or_insert(next);
            }
        }
        let classes = self.skipping.as_ref().map(|skipping| &skipping.classes);
        let key = |slot: usize| {
            let class = classes.map(|classes| classes[slot]);
            (gradients.is_present(slot), self.steps[slot], class, settings(slot).0)
        };
        let mut runs: Vec<Range<usize>> = Vec::new();
        for slot in 0..slots {
            match runs.last_mut() {
                Some(run) if key(run.start) == key(slot) => run.end = slot + 1,
                _ => runs.push(slot..slot + 1),
            }
        }
        let present = runs.into_iter().filter(|slots| gradients.is_present(slots.start));
        let of_slots = |slots: Range<usize>| {
            let ((_, algorithm, lr), step) = (settings(slots.start), self.steps[slots.start] + 1);
            Run { slots, algorithm, step, lr }
        };
        let runs: Vec<Run> = present.map(of_slots).collect();
        let skips = skip.is_some() && self.skipping.is_some();
        let numbers = match &mut self.filled {
            Some(filled) => filled.of(&runs, skips, kind, gradient)?,
            None => {
                let known = |run: &Run| run.algorithm.numbers(run.step, run.lr, skips);
                runs.iter().map(|run| Numbers::Known(known(run))).collect()
            }
        };
        for (Run { slots: run, algorithm, step, lr }, numbers) in runs.into_iter().zip(&numbers) {
            let mut params = flat.range(flat.master(), run.clone())?;
            let gradient = flat.range(gradient, run.clone())?;
            // Nothing between the gradient and the new weight is rounded to f16, or leaves its range.
            let mut work = params.f_to_kind(kind)?;
            let gradient = gradient.f_to_kind(kind)?;
            let mut buffers = Vec::with_capacity(self.buffers.len());
            for buffer in &self.buffers {
                buffers.push(flat.range(buffer, run.clone())?);
            }
            match (skip, &self.skipping) {
                (Some(skip), Some(Skipping { skipped, .. })) => {
                    let mut former = vec![copy_of(&work)?];
                    for buffer in &buffers {
                        former.push(copy_of(buffer)?);
                    }
                    let mut skipped = skipped.f_narrow(0, run.start as i64, run.len() as i64)?;
                    let count = Count::OnDevice(numbers.less_wide(1, &skipped.f_select(0, 0)?)?);
                    algorithm.update(&mut work, &gradient, &mut buffers, &count, (lr, numbers))?;
                    for (now, former) in [&work].into_iter().chain(&buffers).zip(&former) {
                        let _ = former.f_where_self_out(now, skip, now)?;
                    }
                    let _ = skipped.f_add_(&skip.f_to_kind(Kind::Double)?)?;
                }
                _ => {
                    let count = Count::Known(step);
                    algorithm.update(&mut work, &gradient, &mut buffers, &count, (lr, numbers))?
                }
            }
            if params.f_kind()? != kind {
                params.f_copy_(&work)?;
            }
            self.steps[run].fill(step);
        }
        flat.publish()
    }

    /// True if the device may skip updates.
    pub(super) fn skips(&self) -> bool {
        self.skipping.is_some()
    }

    /// The next update of the slots of an earlier one, if the same is computed but for the numbers.
    pub(super) fn next(
        &self,
        runs: &[Run],
        settings: impl Fn(usize) -> (usize, Algorithm, f64),
    ) -> Option<Vec<Run>> {
        let next = runs.iter().map(|run| {
            let (steps, (_, algorithm, lr)) = (&self.steps, settings(run.slots.start));
            let step = steps[run.slots.start];
            let even = steps[run.slots.clone()].iter().all(|other| *other == step);
            even.then(|| Run { slots: run.slots.clone(), algorithm, step: step + 1, lr })
        });
        next.collect::<Option<Vec<Run>>>().filter(|next| are_like(next, runs))
    }

    /// Counts an update that was made by a replay.
    pub(super) fn advance(&mut self) {
        for Run { slots, step, .. } in self.filled.iter().flat_map(Filled::runs) {
            self.steps[slots.clone()].fill(*step);
        }
    }

    /// The addresses of everything on the device that an update reads or writes here.
    pub(super) fn addresses(&self) -> Vec<usize> {
        let skipped = self.skipping.as_ref().map(|skipping| &skipping.skipped);
        let tensors = self.buffers.iter().chain(skipped);
        let numbers = self.filled.as_ref().map_or(0, Filled::address);
        tensors.map(|tensor| tensor.data_ptr() as usize).chain([numbers]).collect()
    }

    pub(super) fn save(
        &mut self,
        flat: &FlatParams,
        variables: &[String],
    ) -> Result<Vec<(String, Tensor)>> {
        self.prepare(flat)?;
        let (mut state, steps) = (Vec::new(), self.done()?);
        for (slot, variable) in variables.iter().enumerate() {
            state.push((format!("{variable}.step"), Tensor::from(steps[slot])));
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
        mut given: HashMap<&str, &Tensor>,
    ) -> Result<()> {
        let mut steps = Vec::with_capacity(variables.len());
        let buffers = self.zeros(flat)?;
        for (slot, variable) in variables.iter().enumerate() {
            let key = format!("{variable}.step");
            steps.push(step_of(&key, take(&mut given, &key, &[])?)?);
            for (name, buffer) in self.names.iter().zip(&buffers) {
                let key = format!("{variable}.{name}");
                let value = take(&mut given, &key, &flat.slots()[slot].shape)?;
                let kind = value.f_kind()?;
                if !is_float(kind) || value.is_sparse() {
                    let layout = if value.is_sparse() { "sparse " } else { "" };
                    refuse!(
                        KindMismatch,
                        "the optimizer state '{key}' has kind {layout}{kind:?}, expected dense floating-point numbers"
                    );
                }
                flat.view_of(buffer, slot)?.f_copy_(value)?;
            }
        }
        if let Some(extra) = given.keys().min() {
            refuse!(
                UnexpectedKeys,
                "the optimizer state holds '{extra}', which this adapter or algorithm does not use"
            );
        }
        for (name, buffer) in self.names.iter().zip(&buffers) {
            // The whole buffer at once; single tensors only to name the one that is wrong.
            if fault(name, buffer)?.is_none() {
                continue;
            }
            for (slot, variable) in variables.iter().enumerate() {
                if let Some((kind, found)) = fault(name, &flat.view_of(buffer, slot)?)? {
                    return Err(Error::new(
                        kind,
                        format!(
                            "the optimizer state '{variable}.{name}' holds {found}: was it saved by a run that \
                             diverged, or changed since? Load an earlier checkpoint"
                        ),
                    ));
                }
            }
        }
        let skipping = self.skipping.take();
        self.steps = steps;
        self.buffers = buffers;
        skipping.map_or(Ok(()), |skipping| self.start_skipping(skipping.skipped.device()))
    }

    /// New buffers, in f32 whatever the kind of the weights (f64 for weights in f64): squares of small gradients would
    /// vanish in f16, and those of large ones overflow.
    fn zeros(&self, flat: &FlatParams) -> Result<Vec<Tensor>> {
        let options = (wide(flat.master().f_kind()?), flat.master().device());
        let size = flat.master().size();
        self.names.iter().map(|_| Ok(Tensor::f_zeros(&size, options)?)).collect()
    }

    /// Creates the buffers, or moves them with the masters.
    fn prepare(&mut self, flat: &FlatParams) -> Result<()> {
        if self.buffers.len() != self.names.len() {
            self.buffers = self.zeros(flat)?;
        }
        let (kind, device) = (wide(flat.master().f_kind()?), flat.master().device());
        if let Some(Skipping { skipped, .. }) = &mut self.skipping {
            *skipped = skipped.f_to_device(device)?;
        }
        for buffer in &mut self.buffers {
            *buffer = buffer.f_to_device(device)?.f_to_kind(kind)?;
        }
        Ok(())
    }
}

/// The tensors of a state by their keys.
pub(super) fn by_key(state: &[(String, Tensor)]) -> Result<HashMap<&str, &Tensor>> {
    let mut given: HashMap<&str, &Tensor> = HashMap::with_capacity(state.len());
    for (key, tensor) in state {
        if given.insert(key, tensor).is_some() {
            refuse!(
                DuplicateKey,
                "the optimizer state holds '{key}' twice, expected every key once: leave one out"
            );
        }
    }
    Ok(given)
}

/// The kind in which an update is computed.
fn wide(kind: Kind) -> Kind {
    if kind == Kind::Double {
        kind
    } else {
        Kind::Float
    }
}

fn take<'a>(given: &mut HashMap<&str, &'a Tensor>, key: &str, shape: &[i64]) -> Result<&'a Tensor> {
    let tensor = given.remove(key).ok_or_else(|| {
        refusal!(MissingKeys, "the optimizer state has no '{key}': is it from another run?")
    })?;
    if !tensor.defined() {
        refuse!(
            MissingKeys,
            "the optimizer state '{key}' is an undefined tensor, expected one with values"
        );
    }
    if tensor.size() != shape {
        refuse!(
            ShapeMismatch,
            "the optimizer state '{key}' has shape {:?}, expected {shape:?}",
            tensor.size()
        );
    }
    Ok(tensor)
}

/// The number of updates, which torch keeps in f32.
fn step_of(key: &str, tensor: &Tensor) -> Result<i64> {
    let expected = "expected the number of updates so far";
    let kind = tensor.f_kind()?;
    if !is_float(kind)
        && !matches!(kind, Kind::Uint8 | Kind::Int8 | Kind::Int16 | Kind::Int | Kind::Int64)
    {
        refuse!(KindMismatch, "the optimizer state '{key}' has kind {kind:?}, {expected}");
    }
    let value = tensor.f_to_kind(Kind::Double)?.f_double_value(&[])?;
    if !value.is_finite() {
        refuse!(NonFinite, "the optimizer state '{key}' is {value}, {expected}");
    }
    if value.fract() != 0. || !(0. ..=MOST_STEPS).contains(&value) {
        refuse!(
            InvalidArgument,
            "the optimizer state '{key}' is {value}, {expected}: a whole number from 0 to 2^53"
        );
    }
    Ok(value as i64)
}

/// The fault of a buffer, if any: its kind, and what was found and expected.
fn fault(name: &str, buffer: &Tensor) -> Result<Option<(ErrorKind, String)>> {
    if !is_finite(buffer)? {
        let kind = buffer.f_kind()?;
        let found = format!("NaN, infinity or a number outside {kind:?}, expected finite numbers");
        return Ok(Some((ErrorKind::NonFinite, found)));
    }
    if name.ends_with("_sq") && buffer.f_ge_number(0.)?.f_all()?.f_int64_value(&[])? == 0 {
        let found = "a negative number, expected means of squares: 0 or more".to_owned();
        return Ok(Some((ErrorKind::InvalidArgument, found)));
    }
    Ok(None)
}
