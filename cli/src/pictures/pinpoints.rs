//! A picture in tiles of the grid that suits it best, as LLaVA-NeXT sees it.

use anyhow::Result;
use serde_json::Value;

use super::options::Options;
use super::raster::Raster;
use super::resize::Filter;
use super::size::{check_area, Size};

/// Heights and widths of the grids, and of the tiles that they are cut into.
#[derive(Debug, Clone)]
pub struct Pinpoints {
    grids: Vec<(usize, usize)>,
    edge: usize,
    /// The height and width of the whole.
    whole: (usize, usize),
    filter: Filter,
}

impl Pinpoints {
    /// Those of a processor's file, which must be the model's.
    pub fn open(options: &Options, config: &Value) -> Result<Self> {
        let key = "image_grid_pinpoints";
        let own = options.value(key);
        let whole = match options.size("size", options.switch("default_to_square", true)?)? {
            Some(Size::Exact { height, width }) => (height, width),
            Some(Size::Shortest(edge)) => (edge, edge),
            _ => options.wrong("size", "'shortest_edge', or 'height' and 'width'")?,
        };
        let edge = options.exact("crop_size")?.map_or(whole.0, |(height, _)| height);
        let grids: Vec<(usize, usize)> = serde_json::from_value(own.clone()).unwrap_or_default();
        let fits = |side: usize| (1..=1 << 20).contains(&side) && side.is_multiple_of(edge);
        if grids.is_empty() || !grids.iter().all(|(height, width)| fits(*height) && fits(*width)) {
            options
                .wrong(key, &format!("heights and widths in multiples of {edge} ('crop_size')"))?;
        }
        let usual = &options.class.defaults[key];
        let of_model = if config[key].is_null() { usual } else { &config[key] };
        if config["vision_config"].is_object() && of_model != own {
            let words = format!("those of config.json, {of_model}: the model counts tiles by them");
            options.wrong(key, &words)?;
        }
        if let Some(size) = config["vision_config"]["image_size"].as_u64() {
            if size != edge as u64 {
                options.wrong("crop_size", &format!("{size}, the 'image_size' of config.json"))?;
            }
        }
        Ok(Pinpoints { grids, edge, whole, filter: options.filter()? })
    }

    /// The grid in which most of a picture is seen; of several such, the first with the least padding.
    fn grid(&self, height: usize, width: usize) -> (usize, usize) {
        let seen = |(high, wide): (usize, usize)| {
            let scale = (wide as f64 / width as f64).min(high as f64 / height as f64);
            let scaled = |side: usize| (side as f64 * scale) as usize;
            let seen = (scaled(width) * scaled(height)).min(width * height);
            (seen, seen as i64 - (high * wide) as i64)
        };
        let better =
            |best, grid: &(usize, usize)| if seen(*grid) > seen(best) { *grid } else { best };
        self.grids[1..].iter().fold(self.grids[0], better)
    }

    /// The whole, and the tiles row after row. The picture is in the middle of its grid, and black is around it.
    pub fn split(&self, image: &Raster) -> Result<Vec<Raster>> {
        let (high, wide) = self.grid(image.height, image.width);
        check_area(high, wide)?;
        let (by_height, by_width) =
            (high as f64 / image.height as f64, wide as f64 / image.width as f64);
        let scaled = |side: usize, scale: f64, most: usize| {
            ((side as f64 * scale).ceil() as usize).min(most)
        };
        let (height, width) = if by_width < by_height {
            (scaled(image.height, by_width, high), wide)
        } else {
            (high, scaled(image.width, by_height, wide))
        };
        let resized = image.resized(width, height, self.filter);
        let black = vec![0; image.channels];
        let (left, top) = ((wide - width) / 2, (high - height) / 2);
        let (rows, columns) = (high / self.edge, wide / self.edge);
        let mut tiles = vec![image.resized(self.whole.1, self.whole.0, self.filter)];
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |at| (row, at))) {
            let at = |place: usize, before: usize| (place * self.edge) as isize - before as isize;
            tiles.push(resized.part(at(column, left), at(row, top), self.edge, self.edge, &black));
        }
        Ok(tiles)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pinpoints(mut given: Value, config: &Value) -> Result<Pinpoints> {
        let dir = tempfile::tempdir()?;
        given["image_processor_type"] = json!("LlavaNextImageProcessorFast");
        std::fs::write(dir.path().join("preprocessor_config.json"), given.to_string())?;
        Pinpoints::open(&Options::open(dir.path(), config)?, config)
    }

    #[test]
    fn grids_that_are_not_the_models_are_refused_by_name() {
        let of = |edge: u64, grids: Value| json!({"size": {"shortest_edge": edge}, "crop_size": edge, "image_grid_pinpoints": grids});
        let config =
            json!({"vision_config": {"image_size": 8}, "image_grid_pinpoints": [[8, 16], [16, 8]]});
        pinpoints(of(8, json!([[8, 16], [16, 8]])), &config).unwrap();
        for (given, words) in [
            (of(8, json!([[16, 8], [8, 16]])), "expected those of config.json, [[8,16],[16,8]]"),
            (
                json!({"size": 336, "crop_size": 336}),
                "expected those of config.json, [[8,16],[16,8]]",
            ),
            (of(8, json!([[8, 12]])), "expected heights and widths in multiples of 8"),
            (of(8, json!([])), "expected heights and widths in multiples of 8"),
            (of(8, json!("8")), "'image_grid_pinpoints' is \"8\""),
            (of(8, json!([[0, 8]])), "expected heights and widths in multiples of 8"),
            (of(4, json!([[8, 16], [16, 8]])), "expected 8, the 'image_size' of config.json"),
            (
                json!({"size": {"longest_edge": 8}}),
                "expected 'shortest_edge', or 'height' and 'width'",
            ),
        ] {
            let error = format!("{:#}", pinpoints(given, &config).unwrap_err());
            assert!(error.contains(words) && error.contains("preprocessor_config.json"), "{error}");
        }
    }

    #[test]
    fn a_model_that_names_no_grids_has_the_usual_ones() {
        let of = |image_size: u64| json!({"vision_config": {"image_size": image_size}});
        let given = json!({"size": 336, "crop_size": 336});
        assert_eq!(pinpoints(given.clone(), &of(336)).unwrap().grid(90, 200), (336, 672));
        let mut other = given;
        other["image_grid_pinpoints"] = json!([[336, 336]]);
        let error = pinpoints(other, &of(336)).unwrap_err().to_string();
        assert!(error.contains("expected those of config.json, [[336,672]"), "{error}");
    }

    proptest! {
        #[test]
        fn any_picture_becomes_the_whole_and_the_tiles_of_a_grid(width in 1..90_usize, height in 1..90_usize) {
            let given = json!({"size": {"shortest_edge": 8}, "crop_size": 8,
                               "image_grid_pinpoints": [[8, 16], [24, 8], [16, 16]]});
            let pinpoints = pinpoints(given, &json!({})).unwrap();
            let image = Raster { bytes: vec![7; width * height], channels: 1, width, height };
            let tiles = pinpoints.split(&image).unwrap();
            prop_assert!([3, 4, 5].contains(&tiles.len()));
            prop_assert!(tiles.iter().all(|tile| (tile.width, tile.height) == (8, 8)));
            prop_assert!(tiles[0].bytes == [7; 64]);
            // A grid is filled from edge to edge in one direction.
            let seen: usize = tiles[1..].iter().flat_map(|tile| &tile.bytes).filter(|byte| **byte == 7).count();
            prop_assert!(seen >= 8);
        }
    }
}
