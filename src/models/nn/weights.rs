//! The variables of a model: those that a `VarStore` holds already, or new ones.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;

use tch::nn::{f_init, Init, Path};
use tch::{Device, Kind, Tensor};

use super::sites::Sites;
use super::tied::Tied;
use super::weight::Weight;
use crate::error::{refuse, Result};
use crate::pretrained::kept::{Kept, Use};
use crate::pretrained::load::{path_of, place_of};
use crate::pretrained::origin::TiedCopy;
use crate::pretrained::{is_part_of, Frozen};

/// The variables below a path, handed out by name: the one that is there, else a new one.
///
/// A path of its own for each part lets a model stand inside another:
/// `Decoder::build(&weights.at("model.language_model"), …)`.
#[derive(Debug, Clone)]
pub struct Weights<'a> {
    path: Path<'a>,
    record: Rc<Record>,
}

/// The variables that were handed out, by full name.
#[derive(Debug)]
struct Record {
    /// Of new variables.
    kind: Kind,
    /// The modules that are made anew in a model that was filled from files; `None`: it was not.
    fresh: Option<Vec<String>>,
    /// Handles of the tied copies in those files.
    copies: Vec<TiedCopy>,
    /// The matrices that are kept in another form or place, by their names.
    kept: HashMap<String, Kept>,
    /// True if no variable is made: only the names of matrices are wanted.
    only_names: bool,
    /// The matrices that were handed out.
    matrices: RefCell<HashMap<String, Use>>,
    taken: RefCell<HashSet<String>>,
    /// The same for rows with adapters of their own.
    sites: Arc<Sites>,
    made: RefCell<Vec<String>>,
}

/// More than any machine has memory for.
const MOST_NUMBERS: i64 = 1 << 40;

/// So many missing tensors are listed, no more are looked for.
const MOST_MISSING: usize = 100;

impl<'a> Weights<'a> {
    /// The variables below `path`; new ones have the kind of the path.
    pub fn new(path: &Path<'a>) -> Self {
        Self::with(path, path.kind(), Vec::new(), Vec::new(), None, false)
    }

    /// None: each variable that is asked for is a number that is repeated, and only its name is noted.
    pub(in crate::models) fn only_names(path: &Path<'a>) -> Self {
        Self::with(path, path.kind(), Vec::new(), Vec::new(), None, true)
    }

    /// The variables of a `VarStore` that was filled from files, with its tied copies. Below `fresh` new ones are made,
    /// in this kind; elsewhere one that is missing is only noted: a configuration can name any number of them.
    pub(in crate::models) fn filled(
        path: &Path<'a>,
        kind: Kind,
        copies: Vec<TiedCopy>,
        kept: Vec<Kept>,
        fresh: Vec<String>,
    ) -> Self {
        Self::with(path, kind, copies, kept, Some(fresh), false)
    }

    fn with(
        path: &Path<'a>,
        kind: Kind,
        copies: Vec<TiedCopy>,
        kept: Vec<Kept>,
        fresh: Option<Vec<String>>,
        only_names: bool,
    ) -> Self {
        let (taken, made, matrices, sites) = Default::default();
        let kept = kept.into_iter().map(|kept| (kept.name.clone(), kept)).collect();
        let record = Record { kind, copies, kept, only_names, fresh, taken, sites, made, matrices };
        Weights { path: path.clone(), record: Rc::new(record) }
    }

    /// The variables that were handed out so far and will be.
    pub(in crate::models) fn sites(&self) -> Arc<Sites> {
        self.record.sites.clone()
    }

    /// [`tensor`](Self::tensor) for a part that asks [`Rows`](super::Rows) for it.
    pub(in crate::models) fn by_row(
        &self,
        name: &str,
        shape: &[i64],
        init: Init,
    ) -> Result<Tensor> {
        let tensor = self.tensor(name, shape, init)?;
        let (path, last) = place_of(&self.path, name);
        self.record.sites.take_by_row(&full_name(&path, last), Some(&tensor));
        Ok(tensor)
    }

    /// The device of new variables.
    pub(in crate::models) fn device(&self) -> Device {
        self.path.device()
    }

    /// The way in which matrices are streamed, if any are.
    pub(super) fn streamed(&self) -> Option<Frozen> {
        self.record.kept.values().find_map(|kept| kept.streamed)
    }

    /// Those below `name`, whose dots lead further down; an empty name leads nowhere.
    pub fn at(&self, name: impl Display) -> Self {
        Weights { path: path_of(&self.path, &name.to_string()), record: self.record.clone() }
    }

    /// The variable of this name if it is there, else a new one.
    ///
    /// # Errors
    /// `ShapeMismatch` if the one that is there has another shape; `Torch`.
    pub fn tensor(&self, name: &str, shape: &[i64], init: Init) -> Result<Tensor> {
        self.found_or_made(name, shape, init, true)
    }

    /// The matrix of a linear layer, `[in, out]` if it is transposed, else `[out, in]`; and whether it is transposed
    /// as it is kept.
    pub(in crate::models) fn matrix(
        &self,
        name: &str,
        shape: [i64; 2],
        transposed: bool,
        init: Init,
    ) -> Result<(Weight, bool)> {
        if let Some(kept) = self.kept(name, Use::Linear { transposed })? {
            // Encoded by rows of outputs.
            let turned = transposed && kept.is_encoded();
            let expected = if turned { [shape[1], shape[0]] } else { shape };
            self.check_shape(name, kept.size(), &expected)?;
            return Ok((kept, transposed && !turned));
        }
        Ok((Weight::from(self.by_row(name, &shape, init)?), transposed))
    }

    /// A matrix whose rows are looked up, or are multiplied with as a head.
    pub(in crate::models) fn rows(
        &self,
        name: &str,
        shape: [i64; 2],
        init: Init,
    ) -> Result<Weight> {
        if let Some(kept) = self.kept(name, Use::Rows)? {
            self.check_shape(name, kept.size(), &shape)?;
            return Ok(kept);
        }
        Ok(Weight::from(self.by_row(name, &shape, init)?))
    }

    /// Notes the use of a matrix, and gives it if it is kept in another form or place.
    fn kept(&self, name: &str, of: Use) -> Result<Option<Weight>> {
        let (path, last) = place_of(&self.path, name);
        let full = full_name(&path, last);
        let kept = match (self.record.kept.get(&full), path.get(last)) {
            (Some(kept), Some(data)) => Some(Weight::kept(data, kept)),
            _ => None,
        };
        if kept.is_some() {
            self.record.taken.borrow_mut().insert(full.clone());
        }
        self.record.matrices.borrow_mut().insert(full, of);
        Ok(kept)
    }

    fn check_shape(&self, name: &str, found: Vec<i64>, expected: &[i64]) -> Result<()> {
        if found != expected {
            let (path, last) = place_of(&self.path, name);
            let full = full_name(&path, last);
            refuse!(ShapeMismatch, "'{full}' has shape {found:?}, the model's is {expected:?}");
        }
        Ok(())
    }

    /// The matrices that were handed out, by their full names.
    pub(in crate::models) fn matrices(&self) -> HashMap<String, Use> {
        self.record.matrices.borrow().clone()
    }

    /// The buffer of this name if it is there, else zeros. A checkpoint may lack it.
    pub(in crate::models) fn buffer(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.found_or_made(name, shape, Init::Const(0.), false)
    }

    /// The variable of this name if it is there, else `other`, which it is tied to.
    pub(in crate::models) fn tied(&self, name: &str, other: &Weight) -> Result<Tied> {
        if let Some(kept) = self.kept(name, Use::Rows)? {
            self.check_shape(name, kept.size(), &other.size())?;
            return Ok(Tied::from(kept));
        }
        if let Some(tensor) = self.found(name, &other.size())? {
            let (path, last) = place_of(&self.path, name);
            self.record.sites.take_by_row(&full_name(&path, last), None);
            return Ok(Tied::from(Weight::from(tensor)));
        }
        let (path, last) = place_of(&self.path, name);
        let full = full_name(&path, last);
        self.record.sites.take_by_row(&full, None);
        let copy = self.record.copies.iter().find(|copy| copy.name == full);
        self.record.taken.borrow_mut().insert(full.clone());
        Ok(Tied::new(other, copy.map(|copy| (full, copy.tensor.shallow_clone()))))
    }

    /// True for a part that files may lack if the variable exists, or if the model is not from files.
    pub(in crate::models) fn may_have(&self, name: &str) -> bool {
        let (path, last) = place_of(&self.path, name);
        self.record.fresh.is_none() || path.get(last).is_some()
    }

    /// The full names of the variables that were handed out, and of those among them that are new.
    pub(in crate::models) fn handed_out(&self) -> (HashSet<String>, Vec<String>) {
        (self.record.taken.borrow().clone(), self.record.made.borrow().clone())
    }

    fn found_or_made(
        &self,
        name: &str,
        shape: &[i64],
        init: Init,
        parameter: bool,
    ) -> Result<Tensor> {
        if let Some(tensor) = self.found(name, shape)? {
            return Ok(tensor);
        }
        let (path, last) = place_of(&self.path, name);
        let full = full_name(&path, last);
        let numbers = shape.iter().try_fold(1_i64, |product, size| product.checked_mul(*size));
        if numbers.is_none_or(|numbers| numbers > MOST_NUMBERS) {
            refuse!(InvalidConfig, "'{full}' has shape {shape:?}: no memory can hold that");
        }
        self.take(full.clone());
        if self.record.only_names {
            let none = Tensor::f_zeros([0; 0], (self.record.kind, path.device()))?;
            return Ok(none.f_expand(shape, false)?);
        }
        let missing = self.record.fresh.as_ref().is_some_and(|fresh| !is_below(&full, fresh));
        let mut made = self.record.made.borrow_mut();
        if parameter {
            made.push(full);
        }
        if parameter && missing {
            if made.len() > MOST_MISSING {
                refuse!(
                    MissingKeys,
                    "the files lack more than {MOST_MISSING} tensors of the model, from '{}' to '{}': does the \
                     configuration belong to them?",
                    made[0],
                    made[made.len() - 1]
                );
            }
            let none = Tensor::f_zeros([0; 0], (self.record.kind, path.device()))?;
            return Ok(none.f_expand(shape, false)?);
        }
        Ok(path.add(last, f_init(init, shape, path.device(), self.record.kind)?, parameter))
    }

    fn found(&self, name: &str, shape: &[i64]) -> Result<Option<Tensor>> {
        let (path, last) = place_of(&self.path, name);
        let Some(tensor) = path.get(last) else { return Ok(None) };
        let full = full_name(&path, last);
        if tensor.size() != shape {
            refuse!(
                ShapeMismatch,
                "'{full}' has shape {:?}, the model's is {shape:?}",
                tensor.size()
            );
        }
        self.take(full);
        Ok(Some(tensor))
    }

    fn take(&self, full: String) {
        self.record.sites.take(&full);
        self.record.taken.borrow_mut().insert(full);
    }
}

/// True for the name of a variable in one of these modules.
pub(in crate::models) fn is_below(name: &str, modules: &[String]) -> bool {
    modules.iter().any(|module| is_part_of(name, module))
}

fn full_name(path: &Path, last: &str) -> String {
    path.components().chain([last]).collect::<Vec<_>>().join(".")
}
