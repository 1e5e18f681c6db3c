//! The variables of a model: those that a `VarStore` holds already, or new ones.

use std::cell::RefCell;

use tch::nn::{f_init, Init, Path, VarStore};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, ErrorKind, Result};
use crate::pretrained::ModelFiles;

/// Hands out variables by their full names, and remembers which.
pub(super) struct Weights<'a> {
    root: &'a Path<'a>,
    /// Of new variables.
    kind: Kind,
    taken: RefCell<Vec<String>>,
    made: RefCell<Vec<String>>,
}

impl<'a> Weights<'a> {
    pub(super) fn new(root: &'a Path<'a>) -> Self {
        Weights { root, kind: root.kind(), taken: RefCell::default(), made: RefCell::default() }
    }

    /// The variable of this name if it is there, else a new one.
    pub(super) fn tensor(&self, name: &str, shape: &[i64], init: Init) -> Result<Tensor> {
        if let Some(tensor) = self.found(name, shape)? {
            return Ok(tensor);
        }
        self.taken.borrow_mut().push(name.to_owned());
        self.made.borrow_mut().push(name.to_owned());
        let (path, last) = self.place(name);
        Ok(path.add(last, f_init(init, shape, path.device(), self.kind)?, true))
    }

    /// The variable of this name if it is there, else `other`, which it is tied to.
    pub(super) fn tied(&self, name: &str, other: &Tensor) -> Result<Tensor> {
        Ok(self.found(name, &other.size())?.unwrap_or_else(|| other.shallow_clone()))
    }

    /// The buffer of this name if it is there, else zeros. A checkpoint may lack it.
    pub(super) fn buffer(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        if let Some(tensor) = self.found(name, shape)? {
            return Ok(tensor);
        }
        self.taken.borrow_mut().push(name.to_owned());
        let (path, last) = self.place(name);
        let zeros = f_init(Init::Const(0.), shape, path.device(), self.kind)?;
        Ok(path.add(last, zeros, false))
    }

    fn found(&self, name: &str, shape: &[i64]) -> Result<Option<Tensor>> {
        let (path, last) = self.place(name);
        let tensor = path.get(last);
        if let Some(tensor) = &tensor {
            self.taken.borrow_mut().push(name.to_owned());
            if tensor.size() != shape {
                return Err(Error::new(
                    ErrorKind::ShapeMismatch,
                    format!("'{name}' has shape {:?}, the model's is {shape:?}", tensor.size()),
                ));
            }
        }
        Ok(tensor)
    }

    /// The path of a variable's module, and its own name.
    fn place<'n>(&self, name: &'n str) -> (Path<'a>, &'n str) {
        let (module, last) = name.rsplit_once('.').unwrap_or(("", name));
        let segments = module.split('.').filter(|segment| !segment.is_empty());
        (segments.fold(self.root.clone(), |path, segment| path / segment), last)
    }
}

/// A `VarStore` with the wanted tensors of a checkpoint, and the model that `build` makes of them: neither may lack a
/// tensor that the other has.
pub(super) fn filled<M>(
    files: &ModelFiles,
    device: Device,
    kind: impl Into<Option<Kind>>,
    wanted: impl Fn(&str) -> bool,
    build: impl FnOnce(&Weights) -> Result<M>,
) -> Result<(VarStore, M)> {
    let renamed = |name: &str| wanted(name).then(|| name.to_owned());
    filled_with(files, device, kind, renamed, |_| false, build)
}

/// [`filled`] with a `classifier` made anew, from the files of a classifier or of the base model in it, whose tensors
/// have no prefix `base`.
pub(super) fn filled_with_new_classifier<M>(
    files: &ModelFiles,
    device: Device,
    kind: impl Into<Option<Kind>>,
    base: &str,
    build: impl FnOnce(&Weights) -> Result<M>,
) -> Result<(VarStore, M)> {
    let starts = |name: &str, module: &str| {
        name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'))
    };
    let prefixed = files.variables().iter().any(|variable| starts(&variable.name, base));
    let renamed = |name: &str| match name {
        _ if starts(name, "classifier") || starts(name, "pooler") => None,
        _ if prefixed => Some(name.to_owned()),
        _ => Some(format!("{base}.{name}")),
    };
    filled_with(files, device, kind, renamed, |name| starts(name, "classifier"), build)
}

/// [`filled`] with variables that have other names than the checkpoint's, by `renamed` (none: left out), and with
/// those that `fresh` accepts made anew where they are lacking, in the kind of the others.
pub(super) fn filled_with<M>(
    files: &ModelFiles,
    device: Device,
    kind: impl Into<Option<Kind>>,
    renamed: impl Fn(&str) -> Option<String>,
    fresh: impl Fn(&str) -> bool,
    build: impl FnOnce(&Weights) -> Result<M>,
) -> Result<(VarStore, M)> {
    let vs = files.renamed_var_store(device, kind, renamed)?;
    let root = vs.root();
    let mut weights = Weights::new(&root);
    let mut kinds = vs.trainable_variables().into_iter().map(|tensor| tensor.kind());
    weights.kind = kinds.next().unwrap_or(weights.kind);
    let model = build(&weights)?;
    let listed = |names: &[String]| names.iter().take(4).cloned().collect::<Vec<_>>().join("', '");
    let place = files.dir().display();
    let (taken, mut made) = (weights.taken.into_inner(), weights.made.into_inner());
    made.retain(|name| !fresh(name));
    if !made.is_empty() {
        return Err(Error::new(
            ErrorKind::MissingKeys,
            format!("'{place}' lacks {} tensors of the model: '{}'", made.len(), listed(&made)),
        ));
    }
    // Older files hold the rotary frequencies, which are computed here.
    let unused = |name: &String| !taken.contains(name) && !name.ends_with("rotary_emb.inv_freq");
    let mut surplus: Vec<String> = vs.variables().into_keys().filter(unused).collect();
    surplus.sort();
    if !surplus.is_empty() {
        return Err(Error::new(
            ErrorKind::UnexpectedKeys,
            format!(
                "'{place}' holds {} tensors that the model has no place for: '{}'",
                surplus.len(),
                listed(&surplus)
            ),
        ));
    }
    Ok((vs, model))
}
