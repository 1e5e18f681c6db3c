//! Many tensors in one buffer: the masters, which an optimiser updates, and the live copies, which the model uses.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// The alignment of slots in elements: a view starts at a multiple of at least 64 bytes in every kind, as vectorised
/// kernels need.
const ALIGN: i64 = 32;

/// The kind in which tuned weights are stored and updated. In settings: `master` or `model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Precision {
    /// Masters in f32 (f64 for tensors in f64); a model in bf16 or f16 computes with a live copy in its own kind.
    ///
    /// Updates smaller than half a unit in the last place are then not lost: near 1, bf16 rounds away everything below
    /// 0.002, which is more than a usual step of AdamW.
    #[default]
    Master,
    /// Store and update the weights in the model's own kind, as PEFT does. In bf16 most small updates are lost.
    Model,
}

/// The place of one tensor in the buffer.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) shape: Vec<i64>,
    /// The kind of the live view.
    pub(crate) kind: Kind,
    pub(crate) start: i64,
    pub(crate) len: i64,
}

impl Slot {
    /// The end, padding included, at which the next slot starts.
    fn end(&self) -> i64 {
        self.start + padded(self.len)
    }
}

/// Neighbouring slots of one kind, different from the master's, and their live buffer.
#[derive(Debug)]
struct Run {
    slots: Range<usize>,
    live: Tensor,
}

/// A list of tensors stored as views of one contiguous buffer.
#[derive(Debug)]
pub(crate) struct FlatParams {
    slots: Vec<Slot>,
    master: Tensor,
    runs: Vec<Run>,
    views: Vec<Tensor>,
    /// Of the views: to ask each time would take as long as all else that a small step does with a view.
    addresses: Vec<usize>,
}

impl FlatParams {
    /// Copies `values` into a new buffer on their device. No graph is recorded.
    pub(crate) fn new(values: &[Tensor], precision: Precision) -> Result<Self> {
        let mut slots = Vec::with_capacity(values.len());
        let mut start = 0;
        for value in values {
            let slot = Slot {
                shape: value.size(),
                kind: value.f_kind()?,
                start,
                len: value.numel() as i64,
            };
            start = slot.end();
            slots.push(slot);
        }
        let device = values.first().map_or(Device::Cpu, Tensor::device);
        let kind = master_kind(&slots, precision);
        // Every element is written below, padding included.
        let master = Tensor::f_empty([start], (kind, device))?;
        let mut flat = FlatParams::unexposed(slots, master);
        let values: Vec<_> = values.iter().map(Some).collect();
        // A concatenation in another kind than the master's serves as the live buffer.
        let lives = flat.gather(&values, &flat.master)?;
        flat.expose(lives)?;
        Ok(flat)
    }

    fn unexposed(slots: Vec<Slot>, master: Tensor) -> Self {
        let (runs, views, addresses) = Default::default();
        FlatParams { slots, master, runs, views, addresses }
    }

    /// Zeros in this layout, in f32 at least, whatever the kind of the masters.
    pub(crate) fn zeros(&self) -> Result<FlatParams> {
        let kind = if self.master.f_kind()? == Kind::Double { Kind::Double } else { Kind::Float };
        let master = Tensor::f_zeros(self.master.size(), (kind, self.master.device()))?;
        let slots = self.slots.clone();
        let mut flat = FlatParams::unexposed(slots, master);
        flat.expose(Vec::new())?;
        Ok(flat)
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The whole buffer, padding (zeros) included.
    pub(crate) fn master(&self) -> &Tensor {
        &self.master
    }

    /// Tensor `slot` for the model: a view in the model's kind.
    pub(crate) fn view(&self, slot: usize) -> &Tensor {
        &self.views[slot]
    }

    /// The address of tensor `slot` for the model.
    pub(crate) fn address(&self, slot: usize) -> usize {
        self.addresses[slot]
    }

    /// Tensor `slot` for the optimiser: a view of the master.
    pub(crate) fn value(&self, slot: usize) -> Result<Tensor> {
        self.view_of(&self.master, slot)
    }

    /// The view of tensor `slot` in another buffer of this layout.
    pub(crate) fn view_of(&self, buffer: &Tensor, slot: usize) -> Result<Tensor> {
        window(buffer, &self.slots[slot], 0)
    }

    /// The part of a buffer of this layout that holds these slots.
    pub(crate) fn range(&self, buffer: &Tensor, slots: Range<usize>) -> Result<Tensor> {
        let (start, end) = self.bounds(&slots);
        Ok(buffer.f_narrow(0, start, end - start)?)
    }

    /// A number that every marked change raises, of masters or of live copies.
    pub(crate) fn version(&self) -> Result<i64> {
        let lives = self.runs.iter().map(|run| Ok(run.live.f_internal_version()?));
        Ok(self.master.f_internal_version()? + lives.sum::<Result<i64>>()?)
    }

    /// Overwrites tensor `slot`, master and live.
    pub(crate) fn set_value(&mut self, slot: usize, value: &Tensor) -> Result<()> {
        self.value(slot)?.f_copy_(&value.f_reshape(&self.slots[slot].shape)?)?;
        let kind = self.slots[slot].kind;
        if kind != self.master.f_kind()? {
            let master = self.value(slot)?;
            self.views[slot].f_copy_(&master)?;
        }
        Ok(())
    }

    /// Overwrites every tensor, master and live, with one concatenation.
    pub(crate) fn set_values(&mut self, values: &[&Tensor]) -> Result<()> {
        let device = values.first().map_or(Device::Cpu, |value| value.device());
        let values: Vec<_> = values.iter().map(|value| Some(*value)).collect();
        if device == self.master.device() {
            self.gather(&values, &self.master)?;
        } else {
            let staged = Tensor::f_zeros([self.master.size1()?], (self.master.f_kind()?, device))?;
            self.gather(&values, &staged)?;
            self.master.f_copy_(&staged)?;
        }
        self.publish()
    }

    /// Takes over what user code has written into the live buffers, also without raising a version, as C++'s SGD does:
    /// a live value that is not its master's rounding becomes the master. Computed on the device, without waiting for
    /// it.
    pub(crate) fn adopt_written(&self) -> Result<()> {
        for run in &self.runs {
            let (start, end) = bounds(&self.slots, &run.slots);
            let master = self.master.f_narrow(0, start, end - start)?;
            let written = run.live.f_ne_tensor(&master.f_to_kind(run.live.f_kind()?)?)?;
            let live = run.live.f_to_kind(master.f_kind()?)?;
            let _ = live.f_where_self_out(&master, &written, &master)?;
        }
        Ok(())
    }

    /// Copies the masters to the live buffers that have memory of their own.
    pub(crate) fn publish(&mut self) -> Result<()> {
        for run in &mut self.runs {
            let (start, end) = bounds(&self.slots, &run.slots);
            run.live.f_copy_(&self.master.f_narrow(0, start, end - start)?)?;
        }
        Ok(())
    }

    /// Sets everything to 0.
    pub(crate) fn zero(&mut self) -> Result<()> {
        let _ = self.master.f_zero_()?;
        for run in &mut self.runs {
            let _ = run.live.f_zero_()?;
        }
        Ok(())
    }

    /// A copy on another device or in other kinds (one per slot). The masters keep their values, and their kind if it
    /// is wider.
    pub(crate) fn relocate(
        &self,
        device: Device,
        kinds: &[Kind],
        precision: Precision,
    ) -> Result<FlatParams> {
        let mut slots = self.slots.clone();
        for (slot, kind) in slots.iter_mut().zip(kinds) {
            slot.kind = *kind;
        }
        let kind = match (precision, self.master.f_kind()?) {
            (Precision::Master, Kind::Double) => Kind::Double,
            _ => master_kind(&slots, precision),
        };
        // Always a copy: the old buffer must not change with the new one.
        let mut master = Tensor::f_zeros([self.master.size1()?], (kind, device))?;
        master.f_copy_(&self.master)?;
        let mut flat = FlatParams::unexposed(slots, master);
        flat.expose(Vec::new())?;
        Ok(flat)
    }

    /// Writes tensors (`None`: zeros) into `out`, a buffer of this layout, with one concatenation per run of kinds.
    /// Returns those concatenations that have another kind than `out`.
    pub(crate) fn gather(&self, tensors: &[Option<&Tensor>], out: &Tensor) -> Result<Vec<Tensor>> {
        let (kind, device) = (out.f_kind()?, out.device());
        let mut others = Vec::new();
        let mut from = 0;
        while from < tensors.len() {
            let run_kind = piece_kind(tensors[from], &self.slots[from])?;
            let mut to = from;
            let mut pieces = Vec::with_capacity(tensors.len() - from);
            while to < tensors.len() && piece_kind(tensors[to], &self.slots[to])? == run_kind {
                let slot = &self.slots[to];
                match tensors[to] {
                    Some(tensor) if tensor.is_sparse() => {
                        pieces.push(tensor.f_to_dense(None::<Kind>, false)?.f_reshape([-1])?)
                    }
                    // A vector needs no call of libtorch to become one.
                    Some(tensor) if tensor.dim() == 1 => pieces.push(tensor.shallow_clone()),
                    Some(tensor) => pieces.push(tensor.f_reshape([-1])?),
                    None => pieces.push(Tensor::f_zeros([slot.len], (run_kind, device))?),
                }
                let padding = slot.end() - slot.start - slot.len;
                if padding > 0 {
                    pieces.push(Tensor::f_zeros([padding], (run_kind, device))?);
                }
                to += 1;
            }
            let (start, end) = self.bounds(&(from..to));
            let mut window = out.f_narrow(0, start, end - start)?;
            if run_kind == kind {
                let _ = Tensor::f_cat_out(&window, &pieces, 0)?;
            } else {
                let other = Tensor::f_cat(&pieces, 0)?;
                window.f_copy_(&other)?;
                others.push(other);
            }
            from = to;
        }
        Ok(others)
    }

    /// Tensors of several rows, `[rows, …]` per slot (`None`: zeros), side by side as `[rows, size]` in this layout, in f32
    /// at least.
    pub(crate) fn gathered_rows(&self, tensors: &[Option<&Tensor>], rows: i64) -> Result<Tensor> {
        let kind = if self.master.f_kind()? == Kind::Double { Kind::Double } else { Kind::Float };
        // Those of one kind are put together first, and converted at once.
        let kinds = tensors.iter().flatten().map(|tensor| tensor.f_kind());
        let mut kinds = kinds.collect::<std::result::Result<Vec<Kind>, _>>()?;
        kinds.dedup();
        let own = if let [own] = kinds[..] { own } else { kind };
        let place = (own, self.master.device());
        let mut pieces = Vec::with_capacity(2 * tensors.len());
        for (slot, tensor) in self.slots.iter().zip(tensors) {
            pieces.push(match tensor {
                Some(tensor) => tensor.f_reshape([rows, slot.len])?.f_to_kind(own)?,
                None => Tensor::f_zeros([rows, slot.len], place)?,
            });
            let padding = slot.end() - slot.start - slot.len;
            if padding > 0 {
                pieces.push(Tensor::f_zeros([rows, padding], place)?);
            }
        }
        Ok(Tensor::f_cat(&pieces, 1)?.f_to_kind(kind)?)
    }

    fn bounds(&self, slots: &Range<usize>) -> (i64, i64) {
        bounds(&self.slots, slots)
    }

    /// Creates the views, and the live buffers unless they are given.
    fn expose(&mut self, lives: Vec<Tensor>) -> Result<()> {
        let mut lives = lives.into_iter();
        let kind = self.master.f_kind()?;
        self.runs.clear();
        self.views.clear();
        self.addresses.clear();
        let mut from = 0;
        while from < self.slots.len() {
            let run_kind = self.slots[from].kind;
            let mut to = from + 1;
            while to < self.slots.len() && self.slots[to].kind == run_kind {
                to += 1;
            }
            let (start, end) = self.bounds(&(from..to));
            let (buffer, origin) = if run_kind == kind {
                (self.master.shallow_clone(), 0)
            } else {
                let live = match lives.next() {
                    Some(live) => live,
                    None => self.master.f_narrow(0, start, end - start)?.f_to_kind(run_kind)?,
                };
                self.runs.push(Run { slots: from..to, live: live.shallow_clone() });
                (live, start)
            };
            for slot in &self.slots[from..to] {
                let view = window(&buffer, slot, origin)?;
                self.addresses.push(view.data_ptr() as usize);
                self.views.push(view);
            }
            from = to;
        }
        Ok(())
    }
}

fn padded(len: i64) -> i64 {
    (len + ALIGN - 1) / ALIGN * ALIGN
}

fn bounds(slots: &[Slot], range: &Range<usize>) -> (i64, i64) {
    match (slots.get(range.start), range.end.checked_sub(1).and_then(|last| slots.get(last))) {
        (Some(first), Some(last)) if !range.is_empty() => (first.start, last.end()),
        _ => (0, 0),
    }
}

/// The view of one slot in a buffer whose first element is element `origin` of the layout.
fn window(buffer: &Tensor, slot: &Slot, origin: i64) -> Result<Tensor> {
    let mut strides = vec![1; slot.shape.len()];
    for dim in (1..slot.shape.len()).rev() {
        strides[dim - 1] = strides[dim] * slot.shape[dim];
    }
    Ok(buffer.f_as_strided(&slot.shape, &strides, slot.start - origin)?)
}

/// The kind that holds every slot's values without loss.
fn master_kind(slots: &[Slot], precision: Precision) -> Kind {
    let has = |kind| slots.iter().any(|slot| slot.kind == kind);
    match slots.first() {
        Some(first)
            if precision == Precision::Model && slots.iter().all(|s| s.kind == first.kind) =>
        {
            first.kind
        }
        _ if has(Kind::Double) => Kind::Double,
        _ => Kind::Float,
    }
}

fn piece_kind(tensor: Option<&Tensor>, slot: &Slot) -> Result<Kind> {
    match tensor {
        Some(tensor) => Ok(tensor.f_kind()?),
        None => Ok(slot.kind),
    }
}

/// A copy in memory of its own; that of tch panics on errors.
pub(crate) fn copy_of(tensor: &Tensor) -> Result<Tensor> {
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}
