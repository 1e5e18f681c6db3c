//! The conversion of a tensor of a GGUF file to that of transformers, and back.

use tch::{Kind, Tensor};

use crate::error::{refuse, Result};
use crate::kernels::number::WithNumber;

/// The way from a tensor of a file to that in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Conversion {
    /// The same.
    #[default]
    AsStored,
    /// Rows of queries or keys whose pairs for a rope stand side by side, and half a head apart in memory.
    Paired { heads: i64 },
    /// Rows of all queries, all keys, all values, which in memory are one group per key-value head: its queries, its
    /// key, its value.
    Grouped { kv_heads: i64, queries: i64 },
    /// `[out, in]`, and `[in, out]` in memory.
    Transposed,
    /// The weight of a norm with 1 added.
    PlusOne,
}

impl Conversion {
    /// The shape in memory.
    pub(crate) fn shape(self, stored: &[i64]) -> Vec<i64> {
        let mut shape = stored.to_vec();
        if self == Conversion::Transposed {
            shape.reverse();
        }
        shape
    }

    /// True if only the order of the rows differs, or nothing.
    pub(crate) fn keeps_rows(self) -> bool {
        !matches!(self, Conversion::Transposed | Conversion::PlusOne)
    }

    /// Per row in memory, the row of the file; `None` if they are the same. `place` names the tensor in messages.
    pub(crate) fn rows(self, place: &str, shape: &[i64]) -> Result<Option<Vec<i64>>> {
        let rows = shape.first().copied().unwrap_or(0);
        let (heads, even) = match self {
            Conversion::Paired { heads } => (heads, 2),
            Conversion::Grouped { kv_heads, queries } => (kv_heads * (queries + 2), 1),
            _ => return Ok(None),
        };
        if heads <= 0 || rows % (heads * even) != 0 {
            refuse!(
                ShapeMismatch,
                "{place} has shape {shape:?}, expected rows of {heads} heads of equal size"
            );
        }
        let size = rows / heads;
        let row = |row: i64| {
            let (head, within) = (row / size, row % size);
            match self {
                Conversion::Grouped { kv_heads, queries } => {
                    let (group, part) = (head / (queries + 2), head % (queries + 2));
                    let from = match part - queries {
                        0 => kv_heads * queries + group,
                        1 => kv_heads * (queries + 1) + group,
                        _ => group * queries + part,
                    };
                    from * size + within
                }
                _ => head * size + within % (size / 2) * 2 + within / (size / 2),
            }
        };
        Ok(Some((0..rows).map(row).collect()))
    }

    /// The tensor in memory.
    pub(crate) fn applied(self, place: &str, stored: Tensor) -> Result<Tensor> {
        if let Some(rows) = self.rows(place, &stored.size())? {
            return Ok(stored.f_index_select(0, &Tensor::f_from_slice(&rows)?)?);
        }
        Ok(match self {
            Conversion::Transposed => stored.f_transpose(0, 1)?.f_contiguous()?,
            // 1 less in a half kind would lose what the file holds.
            Conversion::PlusOne => stored.f_to_kind(Kind::Float)?.f_sub_number(1.)?,
            _ => stored,
        })
    }

    /// The tensor of the file, for one in memory: the inverse of [`applied`](Self::applied).
    pub(crate) fn stored(self, key: &str, memory: &Tensor) -> Result<Tensor> {
        if let Some(rows) = self.rows(key, &memory.size())? {
            let stored = Tensor::f_empty_like(memory)?;
            return Ok(stored.f_index_copy(0, &Tensor::f_from_slice(&rows)?, memory)?);
        }
        Ok(match self {
            Conversion::Transposed => memory.f_transpose(0, 1)?.f_contiguous()?,
            Conversion::PlusOne => memory.f_add_number(1.)?,
            _ => memory.shallow_clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(rows: i64) -> Tensor {
        Tensor::arange(rows, (Kind::Float, tch::Device::Cpu))
    }

    #[test]
    fn pairs_and_groups_come_back_from_the_order_of_llama_cpp() {
        // The converter of llama.cpp: [heads, 2, half] with the last two exchanged.
        let (heads, half) = (3, 4);
        let memory = ramp(heads * 2 * half);
        let stored = memory.view([heads, 2, half]).transpose(1, 2).contiguous().view([-1]);
        let conversion = Conversion::Paired { heads };
        assert_eq!(conversion.applied("k", stored.copy()).unwrap(), memory);
        assert_eq!(conversion.stored("k", &memory).unwrap(), stored);
        // Groups of 2 queries, a key and a value, in 3 key-value heads of 5 rows.
        let memory = ramp(3 * 4 * 5);
        let groups = memory.view([3, 4, 5]);
        let part = |start, length| groups.narrow(1, start, length).contiguous().view([-1]);
        let stored = Tensor::cat(&[part(0, 2), part(2, 1), part(3, 1)], 0);
        let conversion = Conversion::Grouped { kv_heads: 3, queries: 2 };
        assert_eq!(conversion.applied("qkv", stored.copy()).unwrap(), memory);
        assert_eq!(conversion.stored("qkv", &memory).unwrap(), stored);
        let memory = memory.view([12, 5]);
        for conversion in [Conversion::Transposed, Conversion::PlusOne, Conversion::AsStored] {
            let stored = conversion.stored("w", &memory).unwrap();
            assert_eq!(conversion.applied("w", stored).unwrap(), memory);
        }
    }

    #[test]
    fn rows_that_are_no_heads_are_refused() {
        for conversion in
            [Conversion::Paired { heads: 4 }, Conversion::Grouped { kv_heads: 0, queries: 1 }]
        {
            let error = conversion.applied("blk.0.attn_q.weight", ramp(12)).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::ShapeMismatch, "{error}");
        }
    }
}
