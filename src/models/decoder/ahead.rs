//! The places that generation will come to: their positions and masks, made once.

use tch::{Kind, Tensor};

use super::config::DecoderConfig;
use super::context::{masks, Masks};
use crate::error::Result;
use crate::models::nn::{Mask, Places};

/// Of a prompt and all that may follow.
pub(super) struct Ahead<'a> {
    config: &'a DecoderConfig,
    places: Places<'a>,
    /// `[total]` or `[batch, total]`.
    positions: Tensor,
    /// The mask of the last place. An earlier one sees the first part of the same.
    last: Option<Mask>,
}

impl<'a> Ahead<'a> {
    /// `places` are all that there will be, from the first on.
    pub(super) fn new(config: &'a DecoderConfig, places: Places<'a>) -> Result<Self> {
        Ok(Ahead { config, positions: places.positions(true)?, places, last: None })
    }

    /// `length` of the places, behind `start` others.
    pub(super) fn positions(&self, start: i64, length: i64) -> Result<Tensor> {
        Ok(self.positions.f_narrow(-1, start, length)?)
    }

    /// The masks of the place behind `start` others, beside keys that are those within the window.
    pub(super) fn masks(&mut self, start: i64, kind: Kind) -> Result<Masks> {
        let last = match self.last.take() {
            Some(last) => last,
            None => {
                let total = self.places.total();
                let place = Places { start: total - 1, length: 1, ..self.places };
                masks(self.config, &place, &self.positions, &[None], kind)?.remove(0).1
            }
        };
        let mut all: Masks = Vec::new();
        for window in &self.config.windows {
            if all.iter().all(|(known, _)| known != window) {
                let seen = window.map_or(start + 1, |window| window.min(start + 1));
                all.push((*window, last.keys(start + 1 - seen, seen)?));
            }
        }
        self.last = Some(last);
        Ok(all)
    }
}
