//! Weights that are kept in few bits, as bytes, and their values.
//!
//! A tensor is a row of groups, each so many bytes for so many weights. Values are computed by operations of libtorch
//! on the device of the bytes, a few rows at a time, so that numbers in f32 stay in the cache.

mod block_type;
mod blocks;
mod encoding;
mod int8;
mod iq;
mod k;
mod legacy;
mod nf4;

pub use block_type::BlockType;
pub use encoding::Encoding;
use tch::{Device, Kind, Tensor};

use self::blocks::Blocks;
use crate::device::trace::{check_not_traced, sent_numbers};
use crate::device::transfer::sent;
use crate::error::{refusal, refuse, Result};
use crate::kernels::number::{arange, WithNumber};

/// The number of weights whose values are held in f32 at a time: a CPU's cache holds them.
const CACHED: i64 = 1 << 17;
/// The same of other devices, where each call costs more.
const AT_ONCE: i64 = 1 << 24;

/// TorchScript does not know the other views of bytes that decoding takes.
const IN_TRACES: &str = "a matrix in few bits";

/// Weights in an encoding of few bits.
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
    /// `ShapeMismatch` if weights of this shape have another number of bytes, or rows that are no whole number of
    /// blocks; `KindMismatch` for another kind than `Uint8`; `Unsupported` for blocks whose type is not implemented.
    pub fn new(data: &Tensor, shape: &[i64], encoding: impl Into<Encoding>) -> Result<Self> {
        let encoding = encoding.into();
        if let Encoding::Block(block_type) = encoding {
            block_type.check_readable("a tensor")?;
        }
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
        let (rows, columns) = matrix(shape);
        let group = encoding.group(columns);
        // A group may reach from one row into the next.
        let data = match encoding {
            Encoding::Nf4 => data.f_view([-1, group.bytes])?,
            _ => data.f_view([rows, data.numel() as i64 / rows.max(1)])?,
        };
        Ok(Quantised { data, shape: shape.to_vec(), encoding })
    }

    /// The matrix, `[rows, columns]` in any floating-point kind, in `Int8`, `Nf4` or blocks of `Q8_0`: `Int8` rounds
    /// half to even, `Q8_0` away from zero, as llama.cpp does.
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
            Encoding::Block(BlockType::Q8_0) if shape[1] % 32 == 0 => legacy::to_q8_0(matrix)?,
            Encoding::Block(BlockType::Q8_0) => {
                refuse!(ShapeMismatch, "rows of {} weights, expected a multiple of 32", shape[1])
            }
            Encoding::Block(block_type) => {
                refuse!(Unsupported, "{block_type} can be read, and not be made of other weights")
            }
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

    /// The bytes: a row each of the weights, or of the groups of `Nf4`, which may reach over the end of a row.
    pub fn data(&self) -> &Tensor {
        &self.data
    }

    /// The bytes that the weights take.
    pub fn bytes(&self) -> usize {
        self.data.numel()
    }

    /// The rows of these numbers, whose groups are whole in each row: a copy.
    pub(crate) fn of_rows(&self, rows: &Tensor) -> Result<Self> {
        Self::new(&self.data.f_index_select(0, rows)?, &self.shape, self.encoding)
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        let (data, shape) = (self.data.shallow_clone(), self.shape.clone());
        Quantised { data, shape, encoding: self.encoding }
    }

    /// The values. They are computed in f32, those of blocks as llama.cpp and the `gguf` package compute them, and
    /// rounded to `kind` afterwards.
    ///
    /// # Errors
    /// Those of libtorch, such as `OutOfMemory`.
    #[doc(alias = "dequantize")]
    pub fn dequantise(&self, kind: Kind) -> Result<Tensor> {
        let (rows, _) = self.matrix();
        Ok(self.rows(0, rows, kind)?.f_view(&self.shape[..])?)
    }

    /// [`dequantise`](Self::dequantise) into a contiguous tensor of the weights' shape, in its kind, on its device.
    #[cfg_attr(not(feature = "models"), allow(dead_code))]
    pub(crate) fn values_into(&self, out: &Tensor) -> Result<()> {
        if out.device() != self.device() {
            let there = sent(&self.data, out.device())?;
            return Self::new(&there, &self.shape, self.encoding)?.values_into(out);
        }
        let (rows, columns) = self.matrix();
        self.rows_into(0, &out.f_view([rows, columns])?)
    }

    /// The rows, and the weights in each: of more dimensions than two, all but the last count rows.
    fn matrix(&self) -> (i64, i64) {
        matrix(&self.shape)
    }

    /// [`dequantise`](Self::dequantise) for `count` rows from row `start` on.
    ///
    /// # Errors
    /// `InvalidArgument` for rows that are not there; `Torch`.
    pub fn rows(&self, start: i64, count: i64, kind: Kind) -> Result<Tensor> {
        let (rows, columns) = self.matrix();
        if !(0..=rows).contains(&start) || !(0..=rows - start).contains(&count) {
            refuse!(InvalidArgument, "{count} rows from row {start} on, of {rows}");
        }
        let out = Tensor::f_empty([count, columns], (kind, self.device()))?;
        self.rows_into(start, &out)?;
        Ok(out)
    }

    /// [`rows`](Self::rows) into a contiguous tensor of as many rows as wanted, in its kind.
    pub(crate) fn rows_into(&self, start: i64, out: &Tensor) -> Result<()> {
        check_not_traced(IN_TRACES)?;
        let (rows, columns) = self.matrix();
        let (count, kind) = (out.size2()?.0, out.f_kind()?);
        if let Some(stored) = self.encoding.stored() {
            let own = self.data.f_view([rows, -1])?.f_narrow(0, start, count)?;
            out.shallow_clone().f_copy_(&own.f_view_dtype(stored)?)?;
            return Ok(());
        }
        let group = self.encoding.group(columns);
        let groups = self.data.f_view([-1, group.bytes])?;
        let at_once = if self.device() == Device::Cpu { CACHED } else { AT_ONCE };
        let chunk = (at_once / columns.max(1)).clamp(1, count.max(1));
        let whole = columns % group.weights == 0;
        let direct = whole && kind == Kind::Float;
        // Rows may begin and end inside groups.
        let most = (chunk * columns + group.weights - 1) / group.weights + i64::from(!whole);
        let own = (!direct)
            .then(|| Tensor::f_empty([most, group.weights], (Kind::Float, self.device())))
            .transpose()?;
        for done in (0..count).step_by(chunk as usize) {
            let rows = chunk.min(count - done);
            let (begin, end) = ((start + done) * columns, (start + done + rows) * columns);
            let first = begin / group.weights;
            let touched = (end + group.weights - 1) / group.weights - first;
            let groups = groups.f_narrow(0, first, touched)?;
            let mut out = out.f_narrow(0, done, rows)?;
            match &own {
                None => self.decode(&groups, &out.f_view([touched, group.weights])?)?,
                Some(own) => {
                    let own = own.f_narrow(0, 0, touched)?;
                    self.decode(&groups, &own)?;
                    let own = own.f_view([-1])?;
                    let own = own.f_narrow(0, begin - first * group.weights, end - begin)?;
                    out.f_copy_(&own.f_view([rows, columns])?)?;
                }
            }
        }
        Ok(())
    }

    /// The values of the rows with these numbers, `[…]` in any integer kind: `[…, columns]`.
    ///
    /// # Errors
    /// `Torch`, also for numbers of rows that are not there.
    #[cfg_attr(not(feature = "models"), allow(dead_code))]
    pub(crate) fn gather(&self, rows: &Tensor, kind: Kind) -> Result<Tensor> {
        check_not_traced(IN_TRACES)?;
        let columns = self.matrix().1;
        let group = self.encoding.group(columns);
        let mut shape = rows.size();
        shape.push(columns);
        let rows = rows.f_reshape([-1])?;
        let count = rows.size1()?;
        let values = |chosen: &Tensor| -> Result<Tensor> {
            let place = (Kind::Float, self.device());
            let values = Tensor::f_empty([chosen.size2()?.0, group.weights], place)?;
            self.decode(chosen, &values)?;
            Ok(values)
        };
        if columns % group.weights == 0 {
            let all = self.data.f_view([self.matrix().0, -1])?.f_index_select(0, &rows)?;
            let values = match self.encoding.stored() {
                Some(stored) => all.f_view_dtype(stored)?,
                None => values(&all.f_view([-1, group.bytes])?)?,
            };
            return Ok(values.f_to_kind(kind)?.f_view(&shape[..])?);
        }
        // Rows begin inside groups: as many groups as any row touches, then its part of their values.
        let touched = (columns - 1) / group.weights + 2;
        let device = self.device();
        let first = rows.f_to_kind(Kind::Int64)?.f_mul_number(columns)?;
        let weights = sent_numbers(&[group.weights], device)?;
        let first_group = first.f_divide_tensor_mode(&weights, "floor")?.f_unsqueeze(1)?;
        let groups = self.data.f_view([-1, group.bytes])?;
        let last = groups.size2()?.0 - 1;
        let places = first_group.f_add(&arange(0, touched, device)?)?.f_at_most(last)?;
        let chosen = groups.f_index_select(0, &places.f_view([-1])?)?;
        let values = values(&chosen)?.f_view([count, touched * group.weights])?;
        let offset = first.f_unsqueeze(1)?.f_sub(&first_group.f_mul_number(group.weights)?)?;
        let places = offset.f_add(&arange(0, columns, device)?)?;
        Ok(values.f_gather(1, &places, false)?.f_to_kind(kind)?.f_view(&shape[..])?)
    }

    /// Writes the values of groups `[count, bytes]` into f32 `[count, weights]`, contiguous.
    fn decode(&self, groups: &Tensor, out: &Tensor) -> Result<()> {
        let block_type = match self.encoding {
            Encoding::Int8 => return int8::decode(groups, out),
            Encoding::Nf4 => return nf4::decode(groups, out),
            Encoding::Block(block_type) => block_type,
        };
        let blocks = Blocks::new(groups)?;
        match block_type {
            BlockType::Q4_0 => legacy::q4_0(&blocks, out),
            BlockType::Q4_1 => legacy::q4_1(&blocks, out),
            BlockType::Q5_0 => legacy::q5_0(&blocks, out),
            BlockType::Q5_1 => legacy::q5_1(&blocks, out),
            BlockType::Q8_0 => legacy::q8_0(&blocks, out),
            BlockType::Q2_K => k::q2_k(&blocks, out),
            BlockType::Q3_K => k::q3_k(&blocks, out),
            BlockType::Q4_K => k::q4_k(&blocks, out),
            BlockType::Q5_K => k::q5_k(&blocks, out),
            BlockType::Q6_K => k::q6_k(&blocks, out),
            BlockType::IQ4_NL => iq::iq4_nl(&blocks, out),
            BlockType::IQ4_XS => iq::iq4_xs(&blocks, out),
            other => Err(refusal!(Unsupported, "{other} is not implemented")),
        }
    }
}

/// The rows and columns of weights in this shape, whose sizes have a product.
fn matrix(shape: &[i64]) -> (i64, i64) {
    // The first sizes first: a 0 among them keeps the product small, as it does for the whole shape.
    shape.split_last().map_or((1, 1), |(columns, before)| (before.iter().product(), *columns))
}
