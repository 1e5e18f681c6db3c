//! The tables of a rope, made once for all passes of a model.

use std::sync::{Mutex, PoisonError};

use tch::{Kind, Tensor};

use super::mask::Places;
use super::rope::{Beyond, Rope};
use crate::error::Result;
use crate::kernels::number;

/// Tables are made for a multiple of so many places, so that few lengths make them anew.
const STEP: i64 = 512;

/// A rope, and its tables for the first places. They are as long as the longest pass so far needed, and of the device
/// and the kind of the last one.
#[derive(Debug)]
pub(in crate::models) struct RopeTables {
    rope: Rope,
    side_by_side: bool,
    kept: Mutex<Option<(Tensor, Tensor)>>,
}

impl RopeTables {
    pub(in crate::models) fn new(rope: &Rope, side_by_side: bool) -> Self {
        RopeTables { rope: rope.clone(), side_by_side, kept: Mutex::new(None) }
    }

    /// Cosines and sines for these places: `[length, 1, dims]`, or `[batch, length, 1, dims]` where the `positions` are
    /// `[batch, length]` or `[axes, batch, length]`; positions `[length]` are the places themselves.
    pub(in crate::models) fn at(
        &self,
        places: &Places,
        positions: &Tensor,
        kind: Kind,
    ) -> Result<(Tensor, Tensor)> {
        let side = self.side_by_side;
        let (cos, sin) = if self.rope.beyond != Beyond::Same || positions.dim() == 3 {
            // Other tables, the longer the sequence is; or positions on several axes.
            self.rope.tables(positions, side, kind)?
        } else {
            let (cos, sin) = self.first(places, kind)?;
            if positions.dim() == 1 {
                let own = |table: Tensor| table.f_narrow(0, places.start, places.length);
                (own(cos)?, own(sin)?)
            } else {
                let (size, rows) = (positions.size(), positions.f_reshape([-1])?);
                let own = |table: Tensor| -> Result<Tensor> {
                    let shape: Vec<i64> = size.iter().copied().chain([-1]).collect();
                    Ok(table.f_index_select(0, &rows)?.f_view(&*shape)?)
                };
                (own(cos)?, own(sin)?)
            }
        };
        Ok((cos.f_unsqueeze(-2)?, sin.f_unsqueeze(-2)?))
    }

    /// Tables `[at least all places, dims]`.
    fn first(&self, places: &Places, kind: Kind) -> Result<(Tensor, Tensor)> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (total, device) = (places.total(), places.device);
        if let Some((cos, sin)) = kept.as_ref() {
            if cos.size()[0] >= total && cos.device() == device && cos.f_kind()? == kind {
                return Ok((cos.shallow_clone(), sin.shallow_clone()));
            }
        }
        let length = (total + STEP - 1) / STEP * STEP;
        let positions = number::arange(0, length, device)?;
        let (cos, sin) = self.rope.tables(&positions, self.side_by_side, kind)?;
        *kept = Some((cos.shallow_clone(), sin.shallow_clone()));
        Ok((cos, sin))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Device;

    use super::super::rope::powers;
    use super::*;

    fn places(start: i64, length: i64) -> Places<'static> {
        Places { start, length, device: Device::Cpu, tokens: None, documents: None, blocks: None }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn kept_tables_are_those_that_would_be_made(
            passes in prop::collection::vec((0..1200_i64, 1..700_i64, any::<bool>(), any::<bool>()), 1..6),
            side_by_side in any::<bool>(),
        ) {
            tch::set_num_threads(1);
            let rope = Rope::new(&powers(10_000., 8).unwrap().f_reciprocal().unwrap()).unwrap();
            let tables = RopeTables::new(&rope, side_by_side);
            for (start, length, by_row, half) in passes {
                let kind = if half { Kind::BFloat16 } else { Kind::Float };
                let places = places(start, length);
                let mut positions = places.positions(false).unwrap();
                if by_row {
                    let restarted = positions.remainder(7);
                    positions = Tensor::stack(&[&restarted, &positions], 0);
                }
                let (cos, sin) = tables.at(&places, &positions, kind).unwrap();
                let expected = rope.tables(&positions, side_by_side, kind).unwrap();
                for (found, expected) in [(cos, expected.0), (sin, expected.1)] {
                    prop_assert_eq!(found.size(), expected.unsqueeze(-2).size());
                    prop_assert!(found.allclose(&expected.unsqueeze(-2), 0., 1e-6, false));
                }
            }
        }
    }

    #[test]
    fn tables_are_made_once_for_all_passes_that_they_are_long_enough_for() {
        let rope = Rope::new(&powers(10_000., 8).unwrap().f_reciprocal().unwrap()).unwrap();
        let tables = RopeTables::new(&rope, false);
        let first = |start: i64, length: i64, kind: Kind| {
            tables.first(&places(start, length), kind).unwrap().0.data_ptr()
        };
        let made = first(0, 3, Kind::Float);
        assert_eq!(first(0, STEP, Kind::Float), made);
        assert_eq!(first(STEP - 1, 1, Kind::Float), made);
        let longer = first(STEP, 1, Kind::Float);
        assert_ne!(longer, made);
        assert_eq!(first(0, 3, Kind::Float), longer);
        assert_ne!(first(0, 3, Kind::BFloat16), longer);
    }
}
