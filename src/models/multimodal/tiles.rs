//! LLaVA-NeXT's images in tiles: each image is seen as a whole, and in the tiles of the grid that suits it best.

use serde_json::Value;
use tch::nn::Init;
use tch::Tensor;

use super::tower::Taken;
use crate::error::{refuse, Result};
use crate::models::nn::{Rows, Weights};
use crate::models::vision::ImageTowerConfig;

/// Height and width.
pub(super) type Size = [i64; 2];

#[derive(Debug)]
pub(super) struct Tiles {
    config: TilesConfig,
    /// The embedding behind each row of patches, `[size]`.
    newline: Tensor,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct TilesConfig {
    /// The sizes in pixels of the grids that there are.
    grids: Vec<Size>,
    /// Pixels on each side of a tile, and patches.
    pixels: i64,
    patches: i64,
}

/// One image in tiles: of the patches of its grid, padding is left out.
struct Placed {
    /// Rows and columns of tiles.
    tiles: Size,
    /// The first row and column of patches that are kept, and how many are.
    first: Size,
    kept: Size,
}

/// The most pixels on a side: products of two fit into 64 bits.
const LARGEST: i64 = 1 << 24;

const GRIDS: [Size; 5] = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];

impl TilesConfig {
    pub(super) fn read(config: &Value, tower: &ImageTowerConfig, taken: &Taken) -> Result<Self> {
        let grids: Vec<Size> = match config.get("image_grid_pinpoints") {
            None | Some(Value::Null) => GRIDS.to_vec(),
            Some(given) => serde_json::from_value(given.clone()).unwrap_or_default(),
        };
        let (pixels, patches) = (tower.image_size(), tower.side());
        let fits = |side: &i64| (1..=LARGEST).contains(side) && side % pixels == 0;
        if grids.is_empty() || !grids.iter().flatten().all(fits) {
            refuse!(
                InvalidConfig,
                "'image_grid_pinpoints' is {}, expected heights and widths in multiples of 'image_size', {pixels}",
                config.get("image_grid_pinpoints").unwrap_or(&Value::Null)
            );
        }
        let places = taken.shape(tower).0;
        if places != patches * patches {
            refuse!(
                InvalidConfig,
                "'vision_feature_select_strategy' leaves {places} hidden states of an image, expected one for each of its \
                 {} patches",
                patches * patches
            );
        }
        Ok(TilesConfig { grids, pixels, patches })
    }

    /// The number of tiles of an image of this size, and that of its image tokens.
    pub(super) fn count(&self, size: Size) -> Result<(i64, i64)> {
        let Placed { tiles: [rows, columns], kept: [high, wide], .. } = self.placed(size)?;
        Ok((1 + rows * columns, self.patches * self.patches + high * (wide + 1)))
    }

    fn placed(&self, size: Size) -> Result<Placed> {
        let [height, width] = size;
        if !size.iter().all(|side| (1..=LARGEST).contains(side)) {
            refuse!(
                InvalidArgument,
                "an image is {height} pixels high and {width} wide, expected 1 to {LARGEST} each"
            );
        }
        let [high, wide] = self.grid(size);
        let tiles = [high / self.pixels, wide / self.pixels];
        let patches = tiles.map(|tiles| tiles * self.patches);
        // The image fills one side of the grid, and is padded on the other.
        let ratio = |[height, width]: Size| width as f64 / height as f64;
        let (full, padded) = if ratio(size) > ratio(patches) { (1, 0) } else { (0, 1) };
        let scale = patches[full] as f64 / size[full] as f64;
        let own = ((size[padded] as f64 * scale * 1e7).round_ties_even() / 1e7) as i64;
        let (mut first, mut kept) = ([0, 0], patches);
        first[padded] = (patches[padded] - own) / 2;
        kept[padded] -= 2 * first[padded];
        Ok(Placed { tiles, first, kept })
    }

    /// The grid in which most of the image is seen; of several such, the one with the least padding.
    fn grid(&self, [height, width]: Size) -> Size {
        let seen = |[high, wide]: Size| -> (i64, i64) {
            let scale = (wide as f64 / width as f64).min(high as f64 / height as f64);
            let scaled = |side: i64| (side as f64 * scale) as i64;
            let seen = (scaled(width) * scaled(height)).min(width * height);
            (seen, seen - high * wide)
        };
        let better = |best: Size, grid: &Size| if seen(*grid) > seen(best) { *grid } else { best };
        self.grids[1..].iter().fold(self.grids[0], better)
    }
}

impl Tiles {
    pub(super) fn build(weights: &Weights, config: &TilesConfig, size: i64) -> Result<Self> {
        let init = Init::Randn { mean: 0., stdev: (size as f64).powf(-0.5) };
        Ok(Tiles {
            newline: weights.by_row("image_newline", &[size], init)?,
            config: config.clone(),
        })
    }

    /// Embeddings of the tiles of all images, `[tiles, patches, size]`, to those of the images, `[tokens, size]`: of
    /// each image the whole, then its rows, each with the new line.
    pub(super) fn forward(&self, tiles: &Tensor, sizes: &[Size]) -> Result<Tensor> {
        let (side, size) = (self.config.patches, tiles.size3()?.2);
        let (mut all, mut at) = (Vec::new(), 0);
        for image in sizes {
            let Placed { tiles: [rows, columns], first, kept } = self.config.placed(*image)?;
            all.push(tiles.f_select(0, at)?);
            let grid = tiles.f_narrow(0, at + 1, rows * columns)?;
            let grid = grid.f_reshape([rows, columns, side, side, size])?.f_transpose(1, 2)?;
            let grid = grid.f_reshape([rows * side, columns * side, size])?;
            let grid = grid.f_narrow(0, first[0], kept[0])?.f_narrow(1, first[1], kept[1])?;
            let newline = match Rows::with_own([Some(&self.newline)]) {
                Some(rows) => rows.of(&self.newline, rows.adapter(at as usize))?,
                None => self.newline.shallow_clone(),
            };
            let newline = newline.f_view([1, 1, size])?.f_expand([kept[0], 1, size], false)?;
            all.push(Tensor::f_cat(&[grid, newline], 1)?.f_reshape([-1, size])?);
            at += 1 + rows * columns;
        }
        Ok(Tensor::f_cat(&all, 0)?)
    }
}
