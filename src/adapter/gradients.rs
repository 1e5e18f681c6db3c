//! The gradient of an adapter: one flat buffer, which the `.grad()` of its variables show. So there is one place for
//! gradients, as in PyTorch, whoever computes, clips or zeroes them.

use tch::{with_grad, COptimizer, Device, Kind, TchError, Tensor};

use crate::adapter::flat::{copy_of, FlatParams};
use crate::autograd::known_gradient::inner_product;
use crate::error::{refusal, refuse, Result};

#[derive(Debug)]
pub(crate) struct Gradients {
    /// In f32 at least, with copies for the `.grad()` of variables in another kind. Kept between steps, so that a step
    /// allocates nothing. Slots without a gradient are 0 while `.grad()`s show the others.
    flat: Option<FlatParams>,
    slots: Vec<Slot>,
    /// True if `add` was called since the gradients were cleared.
    added: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// True if there is a gradient.
    present: bool,
    /// The version of the variable's `.grad()` when it was last seen, if it is defined. User code raises it.
    shown: Option<i64>,
}

impl Gradients {
    pub(crate) fn new(slots: usize) -> Self {
        Gradients { flat: None, slots: vec![Slot::default(); slots], added: false }
    }

    pub(crate) fn is_present(&self, slot: usize) -> bool {
        self.slots[slot].present
    }

    fn is_empty(&self) -> bool {
        !self.slots.iter().any(|slot| slot.present)
    }

    /// The whole buffer, in the layout of the masters.
    pub(crate) fn flat(&self) -> Result<&Tensor> {
        match &self.flat {
            Some(flat) if !self.is_empty() => Ok(flat.master()),
            _ => Err(refusal!(
                NoGradient,
                "no selected tensor has a gradient: call `backward` first, and check that the loss depends on the \
                 selected modules"
            )),
        }
    }

    /// Follows what user code has done to the `.grad()` of these variables, one per slot: they went backward
    /// themselves, clipped, set to zero, made undefined.
    pub(crate) fn take_in(&mut self, layout: &FlatParams, leaves: &[&Tensor]) -> Result<()> {
        let (mut gone, mut foreign) = (Vec::new(), Vec::new());
        for (slot, leaf) in leaves.iter().enumerate() {
            let (grad, seen) = (leaf.grad(), &mut self.slots[slot]);
            if !grad.defined() {
                if seen.shown.take().is_some() {
                    seen.present = false;
                    gone.push(slot);
                }
                continue;
            }
            let version = Some(grad.f_internal_version()?);
            match &self.flat {
                Some(flat) if is_view(&grad, flat, slot) => {
                    if seen.shown != version {
                        *seen = Slot { present: true, shown: version };
                    }
                }
                _ => foreign.push((slot, grad)),
            }
        }
        let first = self.is_empty();
        // The first gradient overwrites all.
        if let Some(flat) = self.flat.as_ref().filter(|_| !first && !leaves.is_empty()) {
            flat.adopt_written()?;
        }
        if let Some(flat) = self.flat.as_mut().filter(|_| !gone.is_empty()) {
            if first {
                flat.zero()?;
                gone.clear();
            }
            for slot in gone {
                let zeros = flat.value(slot)?.f_zeros_like()?;
                flat.set_value(slot, &zeros)?;
            }
        }
        if foreign.is_empty() {
            return Ok(());
        }
        for (slot, grad) in &foreign {
            let expected = &layout.slots()[*slot].shape;
            if grad.is_sparse() {
                refuse!(
                    UnsupportedVariable,
                    "the `.grad()` of a variable of shape {expected:?} is sparse, expected a dense one: build the \
                     embedding with `sparse: false`, or call `zero_grad` and go backward with the optimizer"
                );
            }
            if grad.size() != *expected {
                refuse!(
                    ShapeMismatch,
                    "the `.grad()` of a variable of shape {expected:?} has shape {:?}: call `zero_grad`",
                    grad.size()
                );
            }
        }
        let flat = self.made(layout)?;
        if first {
            let mut all = vec![None; layout.slots().len()];
            foreign.iter().for_each(|(slot, grad)| all[*slot] = Some(grad));
            flat.gather(&all, flat.master())?;
            flat.publish()?;
        } else {
            for (slot, grad) in &foreign {
                flat.set_value(*slot, grad)?;
            }
        }
        for (slot, grad) in foreign {
            self.expose(slot, grad)?;
        }
        Ok(())
    }

    /// Adds one tensor per slot, after `unscale`; an undefined one adds nothing. The caller has taken in, or cleared.
    pub(crate) fn add(
        &mut self,
        layout: &FlatParams,
        leaves: &[&Tensor],
        found: &[Tensor],
        unscale: impl FnOnce(&mut Tensor) -> Result<()>,
    ) -> Result<()> {
        let found: Vec<Option<&Tensor>> =
            found.iter().map(|tensor| Some(tensor).filter(|t| t.defined())).collect();
        let first = self.is_empty();
        let flat = self.made(layout)?;
        let mut sum = flat.master().shallow_clone();
        let add = || -> Result<()> {
            if first {
                flat.gather(&found, &sum)?;
                return unscale(&mut sum);
            }
            let mut new = sum.f_empty_like()?;
            flat.gather(&found, &new)?;
            unscale(&mut new)?;
            let _ = sum.f_add_(&new)?;
            Ok(())
        };
        if let Err(error) = add() {
            if first {
                flat.zero()?;
            }
            return Err(error);
        }
        flat.publish()?;
        for (slot, gradient) in self.slots.iter_mut().zip(&found) {
            slot.present |= gradient.is_some();
        }
        self.added = true;
        self.show(leaves)
    }

    /// Adds a gradient in this layout, with zeros where none is `present`. The caller has taken in.
    pub(crate) fn add_whole(
        &mut self,
        layout: &FlatParams,
        leaves: &[&Tensor],
        gradient: &Tensor,
        present: &[bool],
    ) -> Result<()> {
        let first = self.is_empty();
        let flat = self.made(layout)?;
        let mut sum = flat.master().shallow_clone();
        if first {
            sum.f_copy_(gradient)?;
        } else {
            let _ = sum.f_add_(gradient)?;
        }
        flat.publish()?;
        for (slot, present) in self.slots.iter_mut().zip(present) {
            slot.present |= present;
        }
        self.added = true;
        self.show(leaves)
    }

    /// Makes every gradient the `.grad()` of its variable.
    pub(crate) fn show(&mut self, leaves: &[&Tensor]) -> Result<()> {
        let Some(flat) = &self.flat else { return Ok(()) };
        let hidden = |slot: &Slot| slot.present && slot.shown.is_none();
        let hidden = leaves.iter().enumerate().filter(|(slot, _)| hidden(&self.slots[*slot]));
        let pairs: Vec<(usize, &Tensor)> =
            hidden.map(|(slot, leaf)| (slot, *leaf)).filter(|(_, l)| l.requires_grad()).collect();
        if pairs.is_empty() {
            return Ok(());
        }
        // tch cannot set a `.grad()`: a backward pass makes them, once, and from then on they are views of the buffer.
        let products: Vec<_> = pairs.iter().map(|(slot, leaf)| (*leaf, flat.view(*slot))).collect();
        with_grad(|| -> Result<()> { Ok(inner_product(&products)?.f_backward()?) })?;
        for (slot, leaf) in pairs {
            self.expose(slot, leaf.grad())?;
        }
        Ok(())
    }

    /// Takes in, and makes the `.grad()` of these variables undefined. The gradients are kept.
    pub(crate) fn hide(&mut self, layout: &FlatParams, leaves: &[&Tensor]) -> Result<()> {
        self.take_in(layout, leaves)?;
        let before: Vec<bool> =
            self.slots.iter_mut().map(|slot| slot.shown.take().is_some()).collect();
        undefine(leaves.iter().zip(before).filter(|(_, shown)| *shown).map(|(leaf, _)| *leaf))
    }

    /// Removes all gradients. A `.grad()` that shows one of our own becomes 0, so that the next one costs nothing to
    /// show; any other becomes undefined, so that the next one of user code is moved there and not added.
    pub(crate) fn clear(&mut self, leaves: &[&Tensor]) -> Result<()> {
        let (added, mut shown, mut others) = (self.added, false, Vec::new());
        self.added = false;
        let before: Vec<Slot> = self.slots.iter_mut().map(std::mem::take).collect();
        for (slot, leaf) in leaves.iter().enumerate() {
            let grad = leaf.grad();
            let ours = |flat: &FlatParams| is_view(&grad, flat, slot);
            let kept = added && before[slot].present && grad.defined();
            if kept && self.flat.as_ref().is_some_and(ours) {
                self.slots[slot].shown = Some(grad.f_internal_version()?);
                shown = true;
            } else {
                others.push(*leaf);
            }
        }
        if let Some(flat) = self.flat.as_mut().filter(|_| shown) {
            flat.zero()?;
        }
        undefine(others.into_iter())
    }

    /// Changes the whole buffer in place.
    pub(crate) fn change(
        &mut self,
        f: impl FnOnce(&mut Tensor) -> Result<Tensor, TchError>,
    ) -> Result<()> {
        let _ = f(&mut self.flat()?.shallow_clone())?;
        self.flat.as_mut().map_or(Ok(()), FlatParams::publish)
    }

    /// The whole buffer in the layout of the masters, with zeros for slots without a gradient, and for each slot
    /// whether it has one.
    #[cfg(feature = "distributed")]
    pub(crate) fn with_presence(&mut self, layout: &FlatParams) -> Result<(Tensor, Vec<bool>)> {
        let (empty, present) = (self.is_empty(), self.slots.iter().map(|slot| slot.present));
        let present = present.collect();
        let flat = self.made(layout)?;
        if empty {
            flat.zero()?;
        }
        Ok((flat.master().shallow_clone(), present))
    }

    /// Overwrites the whole buffer. Slots that are `present` have a gradient from now on.
    #[cfg(feature = "distributed")]
    pub(crate) fn overwrite(
        &mut self,
        layout: &FlatParams,
        leaves: &[&Tensor],
        values: &Tensor,
        present: &[bool],
    ) -> Result<()> {
        let flat = self.made(layout)?;
        flat.master().shallow_clone().f_copy_(values)?;
        flat.publish()?;
        for (slot, present) in self.slots.iter_mut().zip(present) {
            slot.present |= present;
        }
        self.added |= present.contains(&true);
        self.show(leaves)
    }

    /// The addresses of the buffer, and of the `.grad()` of these variables; 0 for what is not there.
    pub(crate) fn addresses(&self, leaves: &[&Tensor]) -> Vec<usize> {
        let address = |grad: Tensor| {
            let dense = grad.defined() && !grad.is_sparse();
            if dense {
                grad.data_ptr() as usize
            } else {
                0
            }
        };
        let flat = self.flat.as_ref().map_or(0, |flat| flat.master().data_ptr() as usize);
        [flat].into_iter().chain(leaves.iter().map(|leaf| address(leaf.grad()))).collect()
    }

    /// For each slot, true if there is a gradient.
    pub(crate) fn presence(&self) -> Vec<bool> {
        self.slots.iter().map(|slot| slot.present).collect()
    }

    /// The buffer was written where it stands, with a gradient of each slot that is `present`.
    pub(crate) fn rewritten(&mut self, leaves: &[&Tensor], present: &[bool]) -> Result<()> {
        for (slot, present) in self.slots.iter_mut().zip(present) {
            *slot = Slot { present: *present, shown: None };
        }
        for (slot, leaf) in self.slots.iter_mut().zip(leaves) {
            let grad = leaf.grad();
            slot.shown = grad.defined().then(|| grad.f_internal_version()).transpose()?;
        }
        self.added = true;
        Ok(())
    }

    /// The name of each slot with a copy of its gradient, if there is one.
    pub(crate) fn named(&self, names: Vec<String>) -> Result<Vec<(String, Option<Tensor>)>> {
        let of = |(slot, name): (usize, String)| {
            let flat = self.flat.as_ref().filter(|_| self.slots[slot].present);
            Ok((name, flat.map(|flat| copy_of(&flat.value(slot)?)).transpose()?))
        };
        names.into_iter().enumerate().map(of).collect()
    }

    /// A copy of the buffer on another device or for other kinds (one per slot).
    pub(crate) fn relocated(&self, device: Device, kinds: &[Kind]) -> Result<Option<FlatParams>> {
        let flat = self.flat.as_ref().filter(|_| !self.is_empty());
        flat.map(|flat| flat.relocate(device, kinds, Default::default())).transpose()
    }

    pub(crate) fn set_flat(&mut self, flat: Option<FlatParams>) {
        self.flat = flat;
    }

    fn made(&mut self, layout: &FlatParams) -> Result<&mut FlatParams> {
        let flat = match self.flat.take() {
            Some(flat) => flat,
            None => layout.zeros()?,
        };
        Ok(self.flat.insert(flat))
    }

    /// Lets a defined `.grad()` show its slot.
    fn expose(&mut self, slot: usize, mut grad: Tensor) -> Result<()> {
        if let Some(flat) = &self.flat {
            grad.f_set_data(flat.view(slot))?;
            self.slots[slot] = Slot { present: true, shown: Some(grad.f_internal_version()?) };
        }
        Ok(())
    }
}

/// True if a gradient shows a slot of this buffer.
fn is_view(grad: &Tensor, flat: &FlatParams, slot: usize) -> bool {
    !grad.is_sparse() && grad.data_ptr() as usize == flat.address(slot)
}

/// Makes the `.grad()` of variables undefined, by libtorch's optimiser, since tch offers it nowhere else.
pub(crate) fn undefine<'a>(variables: impl Iterator<Item = &'a Tensor>) -> Result<()> {
    let mut defined = variables.filter(|variable| variable.grad().defined()).peekable();
    if defined.peek().is_none() {
        return Ok(());
    }
    let mut optimizer = COptimizer::sgd(0., 0., 0., 0., false)?;
    for variable in defined {
        optimizer.add_parameters(variable, 0)?;
    }
    Ok(optimizer.zero_grad()?)
}
