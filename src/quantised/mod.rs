//! Matrices whose weights are kept in few bits, as bytes, and their values.
//!
//! A matrix is a row of groups, each so many bytes for so many weights. Values are computed by operations of libtorch on
//! the device of the bytes, a few rows at a time, so that numbers in f32 stay in the cache.

mod encoding;
mod int8;
mod nf4;

pub use encoding::Encoding;
use tch::{Device, Kind, Tensor};

use crate::error::{refuse, Result};
use crate::kernels::number::{arange, WithNumber};

/// The number of weights whose values are held in f32 at a time: a CPU's cache holds them.
const CACHED: i64 = 1 << 17;
/// The same of other devices, where each call costs more.
const AT_ONCE: i64 = 1 << 24;

/// A matrix in an encoding of few bits.
#[derive(Debug)]
pub struct Quantised {
    /// The groups' bytes, one after the other.
    data: Tensor,
    shape: Vec<i64>,
    encoding: Encoding,
}

impl Quantised {
    /// The weights of these bytes, a contiguous tensor of any shape. `shape` is that of the weights.
    ///
    /// # Errors
    /// `ShapeMismatch` if weights of this shape have another number of bytes; `KindMismatch` for another kind than
    /// `Uint8`.
    pub fn new(data: &Tensor, shape: &[i64], encoding: impl Into<Encoding>) -> Result<Self> {
        let encoding = encoding.into();
        let kind = data.f_kind()?;
        if kind != Kind::Uint8 {
            refuse!(
                KindMismatch,
                "weights in {encoding} have the kind {kind:?}, expected bytes, Uint8: was the VarStore cast after \
                 loading? Choose the kind when the model is loaded"
            );
        }
        let expected = encoding.bytes(shape);
        if expected != Some(data.numel() as i64) || !data.is_contiguous() {
            refuse!(
                ShapeMismatch,
                "weights of shape {shape:?} in {encoding} cannot have {} bytes in a tensor of shape {:?}{}",
                data.numel(),
                data.size(),
                expected.map_or(String::new(), |bytes| format!(", expected {bytes}, contiguous"))
            );
        }
        let data = data.shallow_clone();
        Ok(Quantised { data, shape: shape.to_vec(), encoding })
    }

    /// The matrix, `[rows, columns]` in any floating-point kind, in `Int8` or `Nf4`: `Int8` rounds half to even.
    ///
    /// # Errors
    /// `Unsupported` for an encoding that is only read; `ShapeMismatch` if it is no matrix; `NonFinite` for one that
    /// holds NaN or infinity.
    pub fn of(matrix: &Tensor, encoding: Encoding) -> Result<Self> {
        let shape = matrix.size();
        if shape.len() != 2 {
            refuse!(ShapeMismatch, "a tensor of shape {shape:?} is no matrix");
        }
        let data = match encoding {
            Encoding::Int8 => int8::encoded(matrix)?,
            Encoding::Nf4 => nf4::encoded(matrix)?,
        };
        Self::new(&data, &shape, encoding)
    }

    /// The shape of the weights.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// The encoding.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The device of the bytes.
    pub fn device(&self) -> Device {
        self.data.device()
    }

    /// The bytes.
    pub fn data(&self) -> &Tensor {
        &self.data
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        let (data, shape) = (self.data.shallow_clone(), self.shape.clone());
        Quantised { data, shape, encoding: self.encoding }
    }

    /// The values: computed in f32, rounded to `kind` once.
    ///
    /// # Errors
    /// `Torch`.
    pub fn dequantise(&self, kind: Kind) -> Result<Tensor> {
        let (rows, _) = self.matrix();
        Ok(self.rows(0, rows, kind)?.f_view(&self.shape[..])?)
    }

    /// The rows, and the weights in each: of more dimensions than two, all but the last count rows.
    fn matrix(&self) -> (i64, i64) {
        let columns = self.shape.last().copied().unwrap_or(1);
        (self.shape.iter().rev().skip(1).product(), columns)
    }

    /// [`dequantise`](Self::dequantise) for `count` rows from row `start` on.
    ///
    /// # Errors
    /// `Torch`.
    pub fn rows(&self, start: i64, count: i64, kind: Kind) -> Result<Tensor> {
        let out = Tensor::f_empty([count, self.matrix().1], (kind, self.device()))?;
        self.rows_into(start, &out)?;
        Ok(out)
    }

    /// [`rows`](Self::rows) into a tensor of as many rows as wanted, in its kind.
    pub(crate) fn rows_into(&self, start: i64, out: &Tensor) -> Result<()> {
        let columns = self.matrix().1;
        let group = self.encoding.group(columns);
        let groups = self.data.f_view([-1, group.bytes])?;
        let at_once = if self.device() == Device::Cpu { CACHED } else { AT_ONCE };
        let (count, chunk) = (out.size2()?.0, (at_once / columns.max(1)).max(1));
        let mut done = 0;
        while done < count {
            let rows = chunk.min(count - done);
            let (begin, end) = ((start + done) * columns, (start + done + rows) * columns);
            let first = begin / group.weights;
            let last = (end + group.weights - 1) / group.weights;
            let values = self.values(&groups.f_narrow(0, first, last - first)?)?;
            let mut values = values.f_view([-1])?;
            if values.numel() as i64 != end - begin {
                values = values.f_narrow(0, begin - first * group.weights, end - begin)?;
            }
            out.f_narrow(0, done, rows)?.f_copy_(&values.f_view([rows, columns])?)?;
            done += rows;
        }
        Ok(())
    }

    /// The values of the rows with these numbers, `[…]` in any integer kind: `[…, columns]`.
    ///
    /// # Errors
    /// `Torch`, also for numbers of rows that are not there.
    pub(crate) fn gather(&self, rows: &Tensor, kind: Kind) -> Result<Tensor> {
        let columns = self.matrix().1;
        let group = self.encoding.group(columns);
        let mut shape = rows.size();
        shape.push(columns);
        let rows = rows.f_reshape([-1])?;
        let count = rows.size1()?;
        if columns % group.weights == 0 {
            let all = self.data.f_view([self.matrix().0, -1])?;
            let chosen = all.f_index_select(0, &rows)?.f_view([-1, group.bytes])?;
            return Ok(self.values(&chosen)?.f_to_kind(kind)?.f_view(&shape[..])?);
        }
        // Rows begin inside groups: as many groups as any row touches, then its part of their values.
        let touched = (columns - 1) / group.weights + 2;
        let device = self.device();
        let first = rows.f_to_kind(Kind::Int64)?.f_mul_number(columns)?;
        let weights = Tensor::f_from_slice(&[group.weights])?.f_to_device(device)?;
        let first_group = first.f_divide_tensor_mode(&weights, "floor")?.f_unsqueeze(1)?;
        let groups = self.data.f_view([-1, group.bytes])?;
        let last = groups.size2()?.0 - 1;
        let places = first_group.f_add(&arange(0, touched, device)?)?.f_at_most(last)?;
        let chosen = groups.f_index_select(0, &places.f_view([-1])?)?;
        let values = self.values(&chosen)?.f_view([count, touched * group.weights])?;
        let offset = first.f_unsqueeze(1)?.f_sub(&first_group.f_mul_number(group.weights)?)?;
        let places = offset.f_add(&arange(0, columns, device)?)?;
        Ok(values.f_gather(1, &places, false)?.f_to_kind(kind)?.f_view(&shape[..])?)
    }

    /// The values of groups `[count, bytes]`, in f32.
    fn values(&self, groups: &Tensor) -> Result<Tensor> {
        match self.encoding {
            Encoding::Int8 => int8::values(groups),
            Encoding::Nf4 => nf4::values(groups),
        }
    }
}
