//! The sizes of pictures, which some models must know beside the pixels.

use anyhow::Result;
use ln_tuning::models::Inputs;
use tch::Tensor;

use super::image_tokens::{Grid, ImageTokens};

/// On the CPU, where the model reads them.
#[derive(Debug, Default)]
pub struct Sizes(Option<Of>);

#[derive(Debug)]
enum Of {
    /// Heights and widths in pixels, `[pictures, 2]`.
    Pixels(Tensor),
    /// Frames, rows and columns of patches, `[pictures, 3]`.
    Patches(Tensor),
}

impl Sizes {
    /// Those of pictures; nothing for a model that needs none.
    pub fn of(tokens: &ImageTokens, grids: &[Grid]) -> Result<Self> {
        let Some(in_patches) = tokens.needs_sizes().filter(|_| !grids.is_empty()) else {
            return Ok(Sizes::default());
        };
        let row = |(rows, columns): &Grid| -> Vec<i64> {
            let frames = in_patches.then_some(1);
            frames.into_iter().chain([*rows as i64, *columns as i64]).collect()
        };
        let all: Vec<i64> = grids.iter().flat_map(row).collect();
        let table = Tensor::f_from_slice(&all)?.f_view([grids.len() as i64, -1])?;
        Ok(Sizes(Some(if in_patches { Of::Patches(table) } else { Of::Pixels(table) })))
    }

    /// Adds those that the model takes beside the ids.
    pub fn beside<'a>(&'a self, inputs: Inputs<'a>) -> Inputs<'a> {
        match &self.0 {
            None => inputs,
            Some(Of::Pixels(sizes)) => inputs.image_sizes(sizes),
            Some(Of::Patches(grids)) => inputs.image_grid_thw(grids),
        }
    }

    /// That of one picture for the tower, if the tower needs it.
    pub fn of_tower(&self, picture: usize) -> ln_tuning::Result<Option<Tensor>> {
        match &self.0 {
            Some(Of::Patches(grids)) => Ok(Some(grids.f_narrow(0, picture as i64, 1)?)),
            _ => Ok(None),
        }
    }
}
