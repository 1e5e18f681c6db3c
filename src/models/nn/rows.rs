//! The adapters of a batch's rows in one pass: the parts of a model ask here for weights that rows do not share.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use tch::{Device, Tensor};

use super::choices::Choices;
use crate::device::trace::sent_numbers;
use crate::error::{refuse, Result};
use crate::mixed::{Column, Differing, Matrix, Stack};

/// The weights of the adapters that a batch names, and the part of the batch that each belongs to.
///
/// A *choice* is one of the names given, in their order: that of a row, or of a document.
#[derive(Debug, Clone)]
pub(in crate::models) struct Rows {
    weights: Rc<Weights>,
    at: Rc<Choices>,
}

#[derive(Debug)]
struct Weights {
    /// By the address of the variable.
    vectors: HashMap<usize, Vectors>,
    matrices: Vec<Matrix>,
    /// Of each choice, the number of its adapter.
    adapters: Vec<usize>,
    device: Device,
}

/// A variable's vectors.
#[derive(Debug)]
struct Vectors {
    variable: usize,
    /// `[choices, numbers]`
    of_choices: Tensor,
    shape: Vec<i64>,
    /// Of the last use that only looked at the choices: the dimensions of the parts and of what they stood beside. A token
    /// asks for the same as the one before.
    seen: RefCell<Option<([usize; 2], Tensor)>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rows>> = const { RefCell::new(None) };
}

/// While it lives, parts of models on this thread use the weights of these rows.
#[must_use = "the rows are those of before when this is dropped"]
pub(in crate::models) struct Entered(Option<Rows>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

impl Rows {
    /// With the weights of adapters, each once; `adapters` are the numbers of those of each choice, and `choices` those
    /// of each part, `lead` their shape.
    pub(in crate::models) fn new(
        differing: Differing,
        adapters: Vec<usize>,
        lead: Vec<i64>,
        choices: Vec<usize>,
    ) -> Result<Self> {
        let Differing { trains, stacks, rows, matrices } = differing;
        let values = matrices.iter().flat_map(|matrix| &matrix.values);
        let device = stacks.iter().map(|stack| &stack.rows).chain(values).next();
        let device = device.map_or(Device::Cpu, Tensor::device);
        let rows: Vec<i64> = adapters.iter().map(|adapter| rows[*adapter]).collect();
        let mut vectors = HashMap::new();
        for Stack { rows: all, columns } in stacks {
            if columns.is_empty() {
                continue;
            }
            let device = all.device();
            let own = all.f_index_select(0, &sent_numbers(&rows, device)?)?;
            // Gradients arrive at the vectors of this pass.
            let own = if trains { own.f_detach()?.f_set_requires_grad(true)? } else { own };
            let (mut sizes, mut end) = (Vec::new(), 0);
            for column in &columns {
                let numbers: i64 = column.shape.iter().product();
                // The numbers between are of variables that the model does not have.
                sizes.extend([column.start - end, numbers]);
                end = column.start + numbers;
            }
            sizes.push(all.size2()?.1 - end);
            // One call, whose backward pass is one concatenation.
            let parts = own.f_split_with_sizes(&sizes[..], 1)?;
            for (column, of_choices) in
                columns.into_iter().zip(parts.into_iter().skip(1).step_by(2))
            {
                let Column { variable, address, shape, .. } = column;
                let seen = RefCell::default();
                vectors.insert(address, Vectors { variable, of_choices, shape, seen });
            }
        }
        let at = Rc::new(Choices::new(lead, choices, adapters.len(), device)?);
        let mut matrices = matrices;
        for Matrix { values, train, .. } in &mut matrices {
            for value in values.iter_mut().zip(train).filter_map(|(value, on)| on.then_some(value))
            {
                *value = value.f_detach()?.f_set_requires_grad(true)?;
            }
        }
        let weights = Rc::new(Weights { vectors, matrices, adapters, device });
        Ok(Rows { weights, at })
    }

    /// The vectors at which gradients arrive, each with the number of its variable.
    pub(in crate::models) fn trained(&self) -> Vec<(usize, Tensor)> {
        let vectors = self.weights.vectors.values();
        let mut trained: Vec<(usize, Tensor)> = vectors
            .filter(|vectors| vectors.of_choices.requires_grad())
            .map(|vectors| (vectors.variable, vectors.of_choices.shallow_clone()))
            .collect();
        trained.sort_by_key(|(variable, _)| *variable);
        trained
    }

    /// The matrices at which gradients arrive, each with the number of its adapter and that of its variable.
    pub(in crate::models) fn trained_matrices(&self) -> Vec<(usize, usize, Tensor)> {
        let all = self.weights.matrices.iter().flat_map(|matrix| {
            (0..).zip(&matrix.values).map(|(adapter, value)| (adapter, matrix.variable, value))
        });
        let trained = all.filter(|(.., value)| value.requires_grad());
        trained
            .map(|(adapter, variable, value)| (adapter, variable, value.shallow_clone()))
            .collect()
    }

    /// The same adapters for the parts of something that goes with the batch, such as images, one after the other.
    pub(in crate::models) fn of_parts(&self, choices: Vec<usize>) -> Result<Self> {
        let Weights { adapters, device, .. } = &*self.weights;
        let at = Choices::new(vec![choices.len() as i64], choices, adapters.len(), *device)?;
        Ok(Rows { weights: self.weights.clone(), at: Rc::new(at) })
    }

    /// Those of one part alone.
    pub(in crate::models) fn part(&self, part: usize) -> Result<Self> {
        self.of_parts(vec![self.at.of_parts[part]])
    }

    /// The choice at a place of ids `[rows, length]`, counted through all rows.
    pub(in crate::models) fn choice_at(&self, place: i64, length: i64) -> usize {
        let of_rows = self.at.lead.len() == 1;
        self.at.of_parts[if of_rows { place / length } else { place } as usize]
    }

    /// Uses these rows on this thread, or none, until the guard is dropped.
    pub(in crate::models) fn enter(rows: Option<Rows>) -> Entered {
        Entered(CURRENT.replace(rows))
    }

    pub(in crate::models) fn current() -> Option<Rows> {
        CURRENT.with_borrow(Option::clone)
    }

    /// The rows of now, if one of these variables is not the same for all.
    pub(in crate::models) fn with_own<'t>(
        variables: impl IntoIterator<Item = Option<&'t Tensor>>,
    ) -> Option<Rows> {
        CURRENT.with_borrow(|current| {
            let rows = current.as_ref()?;
            let mut variables = variables.into_iter().flatten();
            variables.any(|variable| rows.has(variable)).then(|| rows.clone())
        })
    }

    fn has(&self, variable: &Tensor) -> bool {
        let address = variable.data_ptr() as usize;
        let Weights { vectors, matrices, .. } = &*self.weights;
        vectors.contains_key(&address) || matrices.iter().any(|matrix| matrix.is_at(address))
    }

    /// True if the tied copy of this name is not the same for all.
    pub(super) fn has_copy(&self, name: &str) -> bool {
        self.weights.matrices.iter().any(|matrix| matrix.name == name)
    }

    /// A variable for each part of `x`, to be multiplied with it or added: `[parts…, 1…, …]`. The variable itself if it
    /// is the same for all.
    pub(super) fn beside(&self, variable: &Tensor, x: &Tensor) -> Result<Tensor> {
        let (size, address) = (x.size(), variable.data_ptr() as usize);
        let vectors = self.weights.vectors.get(&address);
        let dims = [self.at.lead.len(), size.len()];
        let as_they_are = self.at.index.is_none() && size.starts_with(&self.at.lead);
        if let (Some(vectors), true) = (vectors, as_they_are) {
            if let Some((_, own)) = vectors.seen.borrow().as_ref().filter(|(of, _)| *of == dims) {
                return Ok(own.shallow_clone());
            }
        }
        let (of_choices, shape) = match vectors {
            Some(vectors) => (vectors.of_choices.shallow_clone(), vectors.shape.clone()),
            None if self.has(variable) => {
                let choices = self
                    .weights
                    .adapters
                    .iter()
                    .map(|adapter| Ok(self.of(variable, *adapter)?.f_reshape([-1])?));
                (Tensor::f_stack(&choices.collect::<Result<Vec<_>>>()?, 0)?, variable.size())
            }
            None => return Ok(variable.shallow_clone()),
        };
        let (own, lead) = match &self.at.index {
            None if as_they_are => (of_choices, self.at.lead.clone()),
            Some(index) if size.starts_with(&self.at.lead) => {
                (of_choices.f_index_select(0, index)?, self.at.lead.clone())
            }
            _ => {
                let (choices, lead) = self.at.of(&size)?;
                let index: Vec<i64> = choices.iter().map(|choice| *choice as i64).collect();
                let index = sent_numbers(&index, of_choices.device())?;
                (of_choices.f_index_select(0, &index)?, lead)
            }
        };
        let between = size.len().saturating_sub(lead.len() + shape.len());
        let whole = [lead, vec![1; between], shape].concat();
        let own = own.f_view(&whole[..])?;
        // A view for a graph belongs to it alone.
        if let Some(vectors) = vectors.filter(|own| as_they_are && !own.of_choices.requires_grad())
        {
            vectors.seen.replace(Some((dims, own.shallow_clone())));
        }
        Ok(own)
    }

    /// A variable as this adapter has it.
    pub(in crate::models) fn of(&self, variable: &Tensor, adapter: usize) -> Result<Tensor> {
        let address = variable.data_ptr() as usize;
        let Weights { vectors, matrices, adapters, .. } = &*self.weights;
        if let Some(vectors) = vectors.get(&address) {
            let choice = adapters.iter().position(|of| *of == adapter).unwrap_or(0);
            return Ok(vectors
                .of_choices
                .f_select(0, choice as i64)?
                .f_view(&vectors.shape[..])?);
        }
        let matrix = matrices.iter().find(|matrix| matrix.is_at(address));
        let own = matrix.map_or(variable, |matrix| &matrix.values[adapter]);
        if own.size() != variable.size() {
            refuse!(
                Unsupported,
                "an adapter has a part of the model of shape {:?} of its own of which only {:?} is used here: run the rows \
                 of each adapter by themselves with `by_adapter`",
                own.size(),
                variable.size()
            );
        }
        Ok(own.shallow_clone())
    }

    /// A tied copy as this adapter has it; `None` where it is tied.
    pub(super) fn of_copy(&self, name: &str, adapter: usize) -> Option<Tensor> {
        let matrix = self.weights.matrices.iter().find(|matrix| matrix.name == name)?;
        Some(matrix.values[adapter].shallow_clone()).filter(|own| own.numel() > 0)
    }

    /// The same number for adapters with the same of this variable. Vectors stand in rows of each adapter's own, so that
    /// adapters with one share nothing.
    pub(super) fn identity(&self, variable: &Tensor, adapter: usize) -> usize {
        let (address, weights) = (variable.data_ptr() as usize, &*self.weights);
        if weights.vectors.contains_key(&address) {
            return 1 + adapter;
        }
        let matrix = weights.matrices.iter().find(|matrix| matrix.is_at(address));
        matrix.map_or(0, |matrix| matrix.values[adapter].data_ptr() as usize)
    }

    /// The number of adapters.
    pub(super) fn adapters(&self) -> usize {
        self.weights.adapters.iter().max().map_or(0, |last| last + 1)
    }

    /// The adapter of each part of something of this size, and the shape of the parts.
    pub(super) fn adapters_of(&self, size: &[i64]) -> Result<(Vec<usize>, Vec<i64>)> {
        let (choices, lead) = self.at.of(size)?;
        let adapters = choices.iter().map(|choice| self.weights.adapters[*choice]);
        Ok((adapters.collect(), lead))
    }

    /// The number of parts.
    pub(super) fn parts(&self) -> usize {
        self.at.of_parts.len()
    }

    /// The number of the adapter of a part.
    pub(in crate::models) fn adapter(&self, part: usize) -> usize {
        self.weights.adapters[self.at.of_parts[part]]
    }

    /// The shape of the parts.
    pub(in crate::models) fn lead(&self) -> &[i64] {
        &self.at.lead
    }
}

impl Matrix {
    fn is_at(&self, address: usize) -> bool {
        address != 0 && self.address == address
    }
}
