//! The variables of a model: those that a `VarStore` holds already, or new ones.

use std::cell::RefCell;

use tch::nn::{Init, Path};
use tch::Tensor;

use crate::error::{Error, ErrorKind, Result};

/// Hands out variables by their full names, and remembers which.
pub(super) struct Weights<'a> {
    root: &'a Path<'a>,
    taken: RefCell<Vec<String>>,
    made: RefCell<Vec<String>>,
}

impl<'a> Weights<'a> {
    pub(super) fn new(root: &'a Path<'a>) -> Self {
        Weights { root, taken: RefCell::default(), made: RefCell::default() }
    }

    /// The variable of this name if it is there, else a new one.
    pub(super) fn tensor(&self, name: &str, shape: &[i64], init: Init) -> Result<Tensor> {
        let (module, last) = name.rsplit_once('.').unwrap_or(("", name));
        let segments = module.split('.').filter(|segment| !segment.is_empty());
        let path = segments.fold(self.root.clone(), |path, segment| path / segment);
        self.taken.borrow_mut().push(name.to_owned());
        match path.get(last) {
            Some(tensor) if tensor.size() == shape => Ok(tensor),
            Some(tensor) => Err(Error::new(
                ErrorKind::ShapeMismatch,
                format!("'{name}' has shape {:?}, the model's is {shape:?}", tensor.size()),
            )),
            None => {
                self.made.borrow_mut().push(name.to_owned());
                Ok(path.f_var(last, shape, init)?)
            }
        }
    }

    /// Every name that was asked for, and those among them that were not there.
    pub(super) fn names(self) -> (Vec<String>, Vec<String>) {
        (self.taken.into_inner(), self.made.into_inner())
    }
}
