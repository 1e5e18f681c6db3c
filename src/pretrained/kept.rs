//! Matrices of a `VarStore` that are kept in another form, or in another place, than the model computes with.

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

use super::files::ModelFiles;
use super::frozen::{Form, Frozen, Place};
use super::tensor_file::TensorFile;
use crate::error::{refusal, refuse, ErrorKind, Result};
use crate::quantised::{Encoding, Quantised};
use crate::storage::finite::check_cast;

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    /// The name of the variable.
    pub(crate) name: String,
    /// The shape of the weights as they are encoded; a linear layer's is `[out, in]`.
    pub(crate) shape: Vec<i64>,
    /// The model's shape is the other way round, as GPT-2 has it.
    pub(crate) transposed: bool,
    /// `None` for numbers of any kind, which are brought to the device and to the model's kind when needed.
    pub(crate) encoding: Option<Encoding>,
    /// Per row of the weights, that of the encoded matrix, if they are not the same: blocks that stay in their file
    /// have its order.
    pub(crate) rows: Option<Vec<i64>>,
    /// The kind of the values that the model computes with.
    pub(crate) kind: Kind,
    /// The way in which its storage comes to the device when it is needed, if it does.
    #[cfg_attr(not(feature = "models"), allow(dead_code))]
    pub(crate) streamed: Option<Frozen>,
    /// Multiplied with in another order than the variable's.
    #[cfg_attr(not(feature = "models"), allow(dead_code))]
    pub(crate) packed: bool,
}

impl Kept {
    /// The values of what is kept, in the model's shape and kind.
    pub(crate) fn values(&self, data: &Tensor) -> Result<Tensor> {
        let Some(encoding) = self.encoding else { return Ok(data.f_to_kind(self.kind)?) };
        let encoded = Quantised::new(data, &self.shape, encoding)?;
        let values = match &self.rows {
            Some(rows) => encoded.of_rows(&Tensor::f_from_slice(rows)?)?.dequantise(self.kind)?,
            None => encoded.dequantise(self.kind)?,
        };
        Ok(if self.transposed { values.f_tr()? } else { values })
    }

    /// The form and the place, for people.
    pub(crate) fn in_words(&self) -> String {
        let plain = if self.packed { "packed" } else { "streamed" };
        self.encoding.map_or(plain.to_owned(), |encoding| encoding.to_string())
    }
}

/// The use of a matrix in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// In a linear layer.
    Linear {
        /// Its weight is `[in, out]`, as GPT-2 has it.
        transposed: bool,
    },
    /// As a table of rows: embeddings, and the head of a language model.
    #[cfg_attr(not(feature = "models"), allow(dead_code))]
    Rows,
}

/// The matrices that a model takes in any form, by their names, and the way they are to be kept.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    pub(crate) frozen: Frozen,
    pub(crate) matrices: HashMap<String, Use>,
}

impl Keeping {
    /// True if the matrices must be known.
    #[cfg(feature = "models")]
    pub(crate) fn needs_matrices(frozen: Frozen) -> bool {
        let (form, place) = frozen.parts();
        form != Form::Plain || place == Place::Streamed
    }

    /// The form and the place of a tensor.
    fn of(&self, name: &str) -> (Form, Place, Option<Use>) {
        let (form, place) = self.frozen.parts();
        match self.matrices.get(name) {
            None if place == Place::Streamed => (Form::Plain, Place::Mapped, None),
            None => (Form::Plain, place, None),
            Some(Use::Rows) if form == Form::Packed => (Form::Plain, place, None),
            // A few rows of a table are needed, or all of them at the end.
            Some(Use::Rows) if place == Place::Streamed => (form, Place::Mapped, Some(Use::Rows)),
            Some(of) => (form, place, Some(*of)),
        }
    }

    /// True if a tensor is copied to memory even where a map of the file would do.
    pub(super) fn is_copied(&self, name: &str) -> bool {
        self.of(name).1 == Place::Device
    }

    /// True if a tensor is numbers that come from the file as they are there when they are needed.
    #[cfg(feature = "models")]
    pub(super) fn is_streamed(&self, name: &str) -> bool {
        self.of(name).1 == Place::Streamed
    }

    /// True if a tensor is multiplied with in an order of its own.
    #[cfg(feature = "models")]
    pub(super) fn is_packed(&self, name: &str) -> bool {
        self.of(name).0 == Form::Packed
    }

    /// The shape that a tensor is kept in, and the encoding if it is kept in few bits.
    #[cfg(feature = "models")]
    pub(super) fn encoding(
        &self,
        files: &ModelFiles,
        file: &TensorFile,
    ) -> (Vec<i64>, Option<Encoding>) {
        let (form, _, of) = self.of(&file.name);
        let mut shape = file.shape();
        let Some(of) = of else { return (shape, None) };
        let turned = of == (Use::Linear { transposed: true });
        let encoding = match form {
            Form::Gguf => file.block_type(&files.shards()[file.shard], turned).map(Encoding::Block),
            _ => form.encoding(),
        };
        if turned && encoding.is_some() {
            shape.reverse();
        }
        (shape, encoding)
    }

    /// A matrix and the tensor that is kept of it, on `device`; `None` if it is kept as any other tensor.
    pub(super) fn kept(
        &self,
        files: &ModelFiles,
        file: &TensorFile,
        read: impl Fn() -> Result<Tensor>,
        (device, kind): (Device, Option<Kind>),
    ) -> Result<Option<(Kept, Tensor)>> {
        let name = &file.name;
        let (form, place, Some(of)) = self.of(name) else { return Ok(None) };
        let turned = of == (Use::Linear { transposed: true });
        let kept = |shape: &[i64], encoding: Option<Encoding>| -> Result<Kept> {
            let kind = kind.or_else(|| file.kind()).unwrap_or(Kind::Float);
            let (transposed, rows) = (encoding.is_some() && turned, None);
            let streamed = Some(self.frozen).filter(|_| place == Place::Streamed);
            let (name, shape, packed) = (name.clone(), shape.to_vec(), form == Form::Packed);
            Ok(Kept { name, shape, transposed, encoding, rows, kind, streamed, packed })
        };
        let mut rows = None;
        let whole = match form.encoding() {
            Some(encoding) => {
                let on_disk = read()?;
                let matrix = if turned { on_disk.f_tr()? } else { on_disk };
                // Faster there, and moved once.
                let target = if place == Place::Streamed { Device::Cpu } else { device };
                Some(Quantised::of(&matrix.f_to_device(target)?, encoding).map_err(|error| {
                    match error.kind() {
                        ErrorKind::NonFinite => refusal!(
                            NonFinite,
                            "'{name}' in '{}' holds NaN or infinity, and cannot be quantised",
                            files.dir().display()
                        ),
                        _ => error,
                    }
                })?)
            }
            None if form == Form::Gguf && place == Place::Streamed && device == Device::Cpu => {
                // Another order would be a copy, which cannot be given back.
                let found = file.stored_blocks(&files.shards()[file.shard], turned)?;
                found.map(|(blocks, order)| {
                    rows = order;
                    blocks
                })
            }
            None if form == Form::Gguf => file.quantised(&files.shards()[file.shard], turned)?,
            None => None,
        };
        let to = |tensor: &Tensor| -> Result<Tensor> {
            match place {
                Place::Streamed => Ok(tensor.shallow_clone()),
                // A copy of its own.
                Place::Device if device == Device::Cpu && form == Form::Gguf => copied(tensor),
                _ => Ok(tensor.f_to_device(device)?),
            }
        };
        match whole {
            Some(whole) => {
                if kind == Some(Kind::Half) {
                    let values = whole.dequantise(Kind::Float)?;
                    check_cast(
                        &format!("'{name}' in '{}'", files.dir().display()),
                        &values,
                        &values.f_to_kind(Kind::Half)?,
                    )?;
                }
                let kept = kept(whole.shape(), Some(whole.encoding()))?;
                Ok(Some((Kept { rows, ..kept }, to(whole.data())?)))
            }
            None if place == Place::Streamed => {
                let on_disk = read()?;
                Ok(Some((kept(&on_disk.size(), None)?, on_disk)))
            }
            None if form == Form::Packed => {
                let on_disk = read()?;
                let kept = kept(&on_disk.size(), None)?;
                check_packed(name, kept.kind)?;
                let numbers = on_disk.f_to_kind(kept.kind)?;
                if kept.kind != on_disk.f_kind()? {
                    let source = format!("'{name}' in '{}'", files.dir().display());
                    check_cast(&source, &on_disk, &numbers)?;
                }
                let own = place == Place::Device && kept.kind == on_disk.f_kind()?;
                Ok(Some((kept, if own { copied(&numbers)? } else { numbers })))
            }
            None => Ok(None),
        }
    }
}

/// Refuses a kind that has no order of its own.
fn check_packed(name: &str, kind: Kind) -> Result<()> {
    if !matches!(kind, Kind::Float | Kind::BFloat16) {
        refuse!(
            Unsupported,
            "'{name}' is in {kind:?}, and only f32 and bf16 can be packed: load the model in one of them, or leave out \
             'packed'"
        );
    }
    Ok(())
}

/// A copy in memory of its own.
pub(super) fn copied(tensor: &Tensor) -> Result<Tensor> {
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

impl ModelFiles {
    /// Refuses a form that the files do not have.
    pub(crate) fn check_form(&self, frozen: Frozen, device: Device) -> Result<()> {
        let (form, _) = frozen.parts();
        if form == Form::Packed && device != Device::Cpu {
            refuse!(
                Unsupported,
                "'packed' is an order of matrices for the CPU, and the model is to be on {device:?}: leave it out"
            );
        }
        let possible = cfg!(feature = "kernels") && tch::utils::has_mkldnn();
        if form == Form::Packed && !possible {
            refuse!(
                Unsupported,
                "'packed' needs the feature 'kernels' of ln-tuning, and a libtorch with oneDNN: leave it out"
            );
        }
        if form == Form::Gguf && self.gguf().is_none() {
            refuse!(
                Unsupported,
                "'{}' holds no blocks of GGUF, which 'gguf' keeps as they are: open a .gguf file, or choose int8 or nf4, \
                 which take weights of any file",
                self.dir().display()
            );
        }
        Ok(())
    }
}
