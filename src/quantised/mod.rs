//! Weights kept in blocks of a few bits, and computed from them on request.

mod block_type;
mod blocks;
mod iq;
mod k;
mod legacy;

pub use block_type::BlockType;

use tch::{Device, Kind, Tensor};

use self::blocks::Blocks;
use crate::error::{refusal, refuse, Result};

/// The weights that are computed at a time on the CPU, so that what lies between stays in the cache.
const AT_ONCE: i64 = 1 << 17;

/// The same elsewhere, where a launch costs more than memory.
const AT_ONCE_ON_DEVICE: i64 = 1 << 24;

/// A tensor whose weights are kept in blocks.
#[derive(Debug)]
pub struct Quantised {
    /// u8, `[rows, row_bytes]`.
    data: Tensor,
    shape: Vec<i64>,
    block_type: BlockType,
}

impl Quantised {
    /// Weights from the bytes of their blocks, u8 of any shape; `shape` is that of the weights. Nothing is copied that
    /// is contiguous.
    ///
    /// # Errors
    /// `Unsupported` for a type that is not implemented, `KindMismatch` for other kinds than u8, `ShapeMismatch` if
    /// rows are no whole number of blocks, or the bytes are not those of the shape.
    pub fn new(data: &Tensor, shape: &[i64], block_type: BlockType) -> Result<Self> {
        block_type.check_readable("a tensor")?;
        if data.f_kind()? != Kind::Uint8 {
            refuse!(KindMismatch, "blocks of kind {:?}, expected Uint8", data.f_kind()?);
        }
        let width = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).try_fold(1_i64, |all, size| all.checked_mul(*size));
        let bytes = u64::try_from(width).ok().and_then(|width| block_type.row_bytes(width));
        let bytes = bytes.and_then(|bytes| i64::try_from(bytes).ok());
        let found = data.numel() as i64;
        match (rows, bytes) {
            (Some(rows), Some(bytes)) if rows.checked_mul(bytes) == Some(found) && rows >= 0 => {
                let data = data.f_contiguous()?.f_view([rows, bytes])?;
                Ok(Quantised { data, shape: shape.to_vec(), block_type })
            }
            _ => refuse!(
                ShapeMismatch,
                "{found} bytes of {block_type} for the shape {shape:?}, expected rows of whole blocks of {} weights in {} \
                 bytes each",
                block_type.block_len(),
                block_type.block_bytes()
            ),
        }
    }

    /// The shape of the weights.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// The type of the blocks.
    pub fn block_type(&self) -> BlockType {
        self.block_type
    }

    /// Where the blocks are.
    pub fn device(&self) -> Device {
        self.data.device()
    }

    /// The blocks: u8, `[rows, bytes of a row]`.
    pub fn data(&self) -> &Tensor {
        &self.data
    }

    /// The bytes that the blocks take.
    pub fn bytes(&self) -> usize {
        self.data.numel()
    }

    /// The same on another device.
    ///
    /// # Errors
    /// Those of libtorch.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        let data = self.data.f_to_device(device)?;
        Ok(Quantised { data, shape: self.shape.clone(), block_type: self.block_type })
    }

    /// The weights. They are computed in f32, with the values that llama.cpp and the `gguf` package give, and rounded to
    /// `kind` afterwards.
    ///
    /// # Errors
    /// Those of libtorch, such as `OutOfMemory`.
    #[doc(alias = "dequantize")]
    pub fn dequantise(&self, kind: Kind) -> Result<Tensor> {
        let out = Tensor::f_empty(&self.shape, (kind, self.device()))?;
        self.dequantise_into(&out)?;
        Ok(out)
    }

    /// The weights, into a contiguous tensor of their shape.
    pub(crate) fn dequantise_into(&self, out: &Tensor) -> Result<()> {
        let (len, bytes) =
            (self.block_type.block_len() as i64, self.block_type.block_bytes() as i64);
        let blocks = self.data.f_view([-1, bytes])?;
        let count = blocks.size2()?.0;
        let out = out.f_view([count, len])?;
        let kind = out.f_kind()?;
        if let Some(stored) = self.block_type.kind() {
            let mut out = out;
            out.f_copy_(&blocks.f_view_dtype(stored)?)?;
            return Ok(());
        }
        let at_once = if self.device() == Device::Cpu { AT_ONCE } else { AT_ONCE_ON_DEVICE } / len;
        let step = at_once.min(count);
        let own = (kind != Kind::Float)
            .then(|| Tensor::f_empty([step, len], (Kind::Float, self.device())))
            .transpose()?;
        for start in (0..count).step_by(step.max(1) as usize) {
            let here = step.min(count - start);
            let blocks = blocks.f_narrow(0, start, here)?;
            let mut out = out.f_narrow(0, start, here)?;
            match &own {
                None => self.decode(&blocks, &out)?,
                Some(own) => {
                    let own = own.f_narrow(0, 0, here)?;
                    self.decode(&blocks, &own)?;
                    out.f_copy_(&own)?;
                }
            }
        }
        Ok(())
    }

    /// The weights of some blocks, in f32.
    fn decode(&self, blocks: &Tensor, out: &Tensor) -> Result<()> {
        let blocks = Blocks::new(blocks)?;
        match self.block_type {
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
