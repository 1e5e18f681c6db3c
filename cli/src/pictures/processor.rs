//! The image processor of a model: pictures as it sees them.

use std::path::Path;

use anyhow::{ensure, Context, Result};
use image::RgbImage;
use ln_tuning::pretrained::ModelFiles;
use serde_json::Value;
use tch::Tensor;

use super::class::Scheme;
use super::options::Options;
use super::patches::Patches;
use super::pinpoints::Pinpoints;
use super::raster::Raster;
use super::resize::Filter;
use super::size::{check_area, Size};
use super::tiles;

/// The processor that `preprocessor_config.json` names, or the `image_processor` of `processor_config.json`.
#[derive(Debug, Clone)]
pub struct Processor {
    channels: usize,
    /// The colour that makes a square of a picture.
    square: Option<Vec<u8>>,
    resize: Option<(Size, Filter)>,
    /// Height and width.
    crop: Option<(usize, usize)>,
    /// Zeros are put on the right and below the pixel values.
    pad: Option<(usize, usize)>,
    tiles: Option<Tiles>,
    /// LLaVA-NeXT's tiles, each of which is resized and cut.
    pinpoints: Option<Pinpoints>,
    /// In the place of all steps but the last.
    patches: Option<Patches>,
    /// Per channel, the value of each byte.
    values: Vec<Vec<f32>>,
}

/// Idefics3's way with a picture that has been resized.
#[derive(Debug, Clone, Copy)]
struct Tiles {
    /// The edge of a tile.
    edge: usize,
    /// Otherwise all of it becomes one tile.
    split: bool,
    filter: Filter,
}

/// A picture as a model sees it.
#[derive(Debug)]
pub struct Pixels {
    /// `[tiles, channels, height, width]` in f32; one tile, but for processors that split pictures. For those that cut
    /// them into patches, `[patches, numbers]`.
    pub values: Tensor,
    /// As [`Processor::grid`] has them.
    pub rows: usize,
    pub columns: usize,
}

impl Processor {
    /// That of an opened model.
    ///
    /// # Errors
    /// For a class or a setting that is not implemented, by its name.
    pub fn open(files: &ModelFiles) -> Result<Self> {
        Self::of(files.dir(), files.config())
    }

    /// That of a model's directory and its `config.json`.
    pub fn of(dir: &Path, config: &Value) -> Result<Self> {
        let options = Options::open(dir, config)?;
        let tower =
            if config["vision_config"].is_null() { config } else { &config["vision_config"] };
        let channels = ["num_channels", "in_channels"].iter().find_map(|key| tower[*key].as_u64());
        let channels = channels.unwrap_or(3) as usize;
        ensure!(
            [1, 3].contains(&channels),
            "'num_channels' of config.json is {channels}, expected 1 or 3"
        );
        let switch = |key: &str| options.switch(key, false);
        let is = |scheme: Scheme| options.class.scheme == scheme;
        let plain = is(Scheme::Plain) || is(Scheme::Squared) || is(Scheme::Pinpoints);
        let squared = is(Scheme::Squared) && switch("do_pad")?;
        let square = || -> Result<Vec<u8>> {
            let mean = options.per_channel("image_mean", channels)?;
            Ok(mean.iter().map(|mean| (mean * 255.) as u8).collect())
        };
        let crop = plain && switch("do_center_crop")?;
        let cropped =
            || options.exact("crop_size")?.ok_or_else(|| options.fault("'crop_size' is missing"));
        let pad = is(Scheme::Plain) && switch("do_pad")?;
        let split = || -> Result<Tiles> {
            Ok(Tiles {
                edge: options.longest("max_image_size")?,
                split: switch("do_image_splitting")?,
                filter: options.filter()?,
            })
        };
        let processor = Processor {
            channels,
            square: squared.then(square).transpose()?,
            resize: if is(Scheme::Patches) { None } else { options.resizing()? },
            crop: crop.then(cropped).transpose()?,
            pad: if pad { options.exact("pad_size")? } else { None },
            tiles: is(Scheme::Split).then(split).transpose()?,
            pinpoints: is(Scheme::Pinpoints)
                .then(|| Pinpoints::open(&options, config))
                .transpose()?,
            patches: is(Scheme::Patches).then(|| Patches::open(&options, config)).transpose()?,
            values: values(&options, channels)?,
        };
        processor.check_size(&options, config, tower)?;
        Ok(processor)
    }

    /// The height and width that all pictures get, where it is one.
    fn size(&self) -> Option<(usize, usize)> {
        let resized = match self.resize {
            Some((Size::Exact { height, width }, _)) => Some((height, width)),
            _ => None,
        };
        let tile = self.tiles.map(|tiles| (tiles.edge, tiles.edge));
        self.pad.or(tile).or(self.crop).or(resized)
    }

    /// Towers with a position for each place take pictures of one size.
    fn check_size(&self, options: &Options, config: &Value, tower: &Value) -> Result<()> {
        let takes_any =
            ["dinov2", "idefics3", "smolvlm"].map(Some).contains(&config["model_type"].as_str());
        let (Some((height, width)), Some(edge)) = (self.size(), tower["image_size"].as_u64())
        else {
            return Ok(());
        };
        let fits = takes_any || (height as u64, width as u64) == (edge, edge);
        fits.then_some(()).ok_or_else(|| {
            options.fault(&format!(
                "it makes pictures of {width} x {height} pixels, and config.json's 'image_size' is {edge}: set 'size' \
                 and 'crop_size' to what the model has learned"
            ))
        })
    }

    /// True if what a picture becomes follows from its size.
    pub fn splits(&self) -> bool {
        let tiles = self.tiles.is_some_and(|tiles| tiles.split);
        tiles || self.pinpoints.is_some() || self.patches.is_some()
    }

    /// The rows and columns of tiles that a picture of this size is cut into, as [`apply`](Self::apply) does it: behind
    /// them stands one tile for the whole; 0 where it is not cut. Of a picture in patches those of patches. LLaVA-NeXT's
    /// models find them themselves: height and width.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn grid(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        if let Some(patches) = &self.patches {
            return patches.grid(height, width);
        }
        if self.pinpoints.is_some() {
            return Ok((height, width));
        }
        let (height, width) = match self.resize {
            Some((size, _)) => size.of(height, width)?,
            None => (height, width),
        };
        match self.tiles {
            Some(Tiles { edge, split: true, .. }) => {
                let grid = tiles::grid(height, width, edge)?;
                Ok(if grid == (1, 1) { (0, 0) } else { grid })
            }
            _ => Ok((0, 0)),
        }
    }

    /// A picture as the model sees it.
    ///
    /// # Errors
    /// For a picture of such proportions that it would fill the memory.
    pub fn apply(&self, image: &RgbImage) -> Result<Pixels> {
        let image = Raster::of(image, self.channels);
        let (rows, columns) = self.grid(image.height, image.width)?;
        if let Some(patches) = &self.patches {
            let values = patches.packed(&patches.resized(&image)?, &self.values)?;
            return Ok(Pixels { values, rows, columns });
        }
        let tiles = match (&self.pinpoints, self.tiles) {
            (Some(pinpoints), _) => {
                let tiles = pinpoints.split(&image)?.into_iter();
                tiles.map(|tile| self.sized(tile)).collect::<Result<_>>()?
            }
            (None, Some(Tiles { edge, split: true, filter })) => {
                tiles::split(self.sized(image)?, edge, filter)?
            }
            (None, Some(Tiles { edge, filter, .. })) => {
                vec![self.sized(image)?.resized(edge, edge, filter)]
            }
            (None, None) => vec![self.sized(image)?],
        };
        let (high, wide) =
            tiles.first().map(|tile| (tile.height, tile.width)).context("no tile")?;
        let mut pixels = Vec::with_capacity(tiles.len() * self.channels * high * wide);
        for tile in &tiles {
            for (channel, values) in self.values.iter().enumerate() {
                let bytes = tile.bytes.iter().skip(channel).step_by(self.channels);
                pixels.extend(bytes.map(|byte| values[usize::from(*byte)]));
            }
        }
        let shape = [tiles.len(), self.channels, high, wide].map(|size| size as i64);
        let values = Tensor::f_from_slice(&pixels)?.f_view(shape)?;
        Ok(Pixels { values: self.padded(values, high, wide)?, rows, columns })
    }

    /// Resized, and cut.
    fn sized(&self, mut image: Raster) -> Result<Raster> {
        if let Some(colour) = &self.square {
            let edge = image.width.max(image.height);
            check_area(edge, edge)?;
            image = image.squared(colour);
        }
        if self.resize.is_some() || self.crop.is_some() {
            let same = (Size::Exact { height: image.height, width: image.width }, Filter::Nearest);
            let (size, filter) = self.resize.unwrap_or(same);
            let (height, width) = size.of(image.height, image.width)?;
            let (high, wide) = self.crop.unwrap_or((height, width));
            check_area(high, wide)?;
            image = image.middle_of_resized((width, height), filter, (wide, high));
        }
        Ok(image)
    }

    fn padded(&self, values: Tensor, high: usize, wide: usize) -> Result<Tensor> {
        let Some((height, width)) = self.pad else { return Ok(values) };
        ensure!(
            high <= height && wide <= width,
            "the picture has {wide} x {high} pixels, and 'pad_size' of the image processor is {width} x {height}"
        );
        Ok(values.f_constant_pad_nd([0, (width - wide) as i64, 0, (height - high) as i64])?)
    }
}

/// Per channel, the value of each byte: rescaled in 64 bits, normalised in 32, as transformers does it.
fn values(options: &Options, channels: usize) -> Result<Vec<Vec<f32>>> {
    let factor = if options.switch("do_rescale", true)? { options.factor()? } else { 1. };
    let scale = |byte: u8| (f64::from(byte) * factor) as f32;
    if !options.switch("do_normalize", true)? {
        return Ok(vec![(0..=255).map(scale).collect(); channels]);
    }
    let (mean, std) =
        (options.per_channel("image_mean", channels)?, options.per_channel("image_std", channels)?);
    let channel = |(mean, std): (&f64, &f64)| {
        (0..=255).map(|byte| (scale(byte) - *mean as f32) / *std as f32).collect()
    };
    Ok(mean.iter().zip(&std).map(channel).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn processor(given: &Value, config: &Value) -> Result<Processor> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("preprocessor_config.json"), given.to_string())?;
        Processor::of(dir.path(), config)
    }

    #[test]
    fn pixels_are_rescaled_and_normalised_as_the_preprocessor_says() {
        let greys = [0, 4, 8, 16].map(|grey| [grey; 3]).concat();
        let image = RgbImage::from_raw(2, 2, greys).unwrap();
        let pixels = |mut given: Value| -> Result<Vec<f32>> {
            given["size"] = json!(2);
            let config = json!({"model_type": "vit", "image_size": 2, "num_channels": 1});
            let values = processor(&given, &config)?.apply(&image)?.values;
            Ok(Vec::try_from(values.flatten(0, -1))?)
        };
        let half = json!([0.5]);
        for (given, expected) in [
            (
                json!({"rescale_factor": 0.0625, "image_mean": half, "image_std": half}),
                [-1., -0.5, 0., 1.],
            ),
            (json!({"rescale_factor": 0.125, "do_normalize": false}), [0., 0.5, 1., 2.]),
            (json!({"do_rescale": false, "do_normalize": false}), [0., 4., 8., 16.]),
            (json!({"do_rescale": false, "image_mean": 4, "image_std": 2}), [-2., 0., 2., 6.]),
        ] {
            assert_eq!(pixels(given.clone()).unwrap(), expected, "{given}");
        }
        let error = pixels(json!({"image_mean": [0.5, 0.5, 0.5]})).unwrap_err().to_string();
        assert!(error.contains("'image_mean' is [0.5,0.5,0.5], expected 1 numbers"), "{error}");
    }

    #[test]
    fn settings_that_cannot_be_are_refused_by_name() {
        let clip = |key: &str, value: Value| json!({"image_processor_type": "CLIPImageProcessor", key: value});
        let split = |key: &str, value: Value| json!({"image_processor_type": "Idefics3ImageProcessorFast", key: value});
        for (given, words) in [
            (
                json!({"image_processor_type": "VivitImageProcessor"}),
                "VivitImageProcessor is not implemented",
            ),
            (
                clip("rescale_offset", json!(true)),
                "'rescale_offset' is true, which is not implemented",
            ),
            (clip("do_flip_channel_order", json!(true)), "'do_flip_channel_order' is true"),
            (clip("do_image_splitting", json!(true)), "not implemented for CLIPImageProcessor"),
            (
                json!({"image_processor_type": "Gemma3ImageProcessor", "do_pan_and_scan": true}),
                "'do_pan_and_scan' is true",
            ),
            (clip("do_resize", json!("no")), "'do_resize' is \"no\", expected true or false"),
            (clip("resample", json!(6)), "'resample' is 6, expected 0 to 5"),
            (clip("size", json!({"longest_edge": 3})), "no 'longest_edge' alone"),
            (clip("size", json!({"height": 3})), "'size' is {\"height\":3}: expected a number"),
            (clip("crop_size", json!({"shortest_edge": 3})), "'crop_size' is"),
            (
                clip("crop_size", json!(200)),
                "it makes pictures of 200 x 200 pixels, and config.json's 'image_size' is 224",
            ),
            (clip("image_std", json!([1, 2])), "'image_std' is [1,2], expected 3 numbers"),
            (
                clip("rescale_factor", json!("1/255")),
                "'rescale_factor' is \"1/255\", expected a number",
            ),
            (
                split("size", json!({"shortest_edge": 3})),
                "expected 'longest_edge', or 'height' and 'width'",
            ),
            (split("max_image_size", json!(3)), "expected an object with 'longest_edge'"),
            (json!([]), "expected an object"),
        ] {
            let config = json!({"model_type": "clip", "vision_config": {"image_size": 224}});
            let error = format!("{:#}", processor(&given, &config).unwrap_err());
            assert!(error.contains(words) && error.contains("preprocessor_config.json"), "{error}");
        }
    }

    #[test]
    fn a_picture_of_extreme_proportions_is_cut_before_it_fills_the_memory() {
        let config = json!({"model_type": "clip"});
        let apply = |class: &str, settings: Value, image: &RgbImage| {
            let mut given = settings;
            given["image_processor_type"] = json!(class);
            processor(&given, &config).unwrap().apply(image).map(|pixels| pixels.values.size())
        };
        let thread = RgbImage::new(1, 9000);
        let cut = apply("CLIPImageProcessor", json!({}), &thread).unwrap();
        assert_eq!(cut, [1, 3, 224, 224]);
        let error = apply("CLIPImageProcessor", json!({"do_center_crop": false}), &thread);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("makes 224 x 2016000 pixels of the picture"), "{error}");
        let thread = RgbImage::new(12_000, 1);
        let error = apply("LlavaImageProcessor", json!({"do_pad": true}), &thread).unwrap_err();
        assert!(error.to_string().contains("makes 12000 x 12000 pixels"), "{error}");
    }

    #[test]
    fn a_model_without_a_file_is_refused_but_for_those_that_never_needed_one() {
        let dir = tempfile::tempdir().unwrap();
        let open = |model_type: &str| {
            Processor::of(dir.path(), &json!({"model_type": model_type, "image_size": 8}))
        };
        for model_type in ["vit", "dinov2"] {
            assert_eq!(open(model_type).unwrap().size(), Some((8, 8)));
        }
        let error = open("clip").unwrap_err().to_string();
        assert!(error.contains("preprocessor_config.json' is missing"), "{error}");
        // The newer file wins, if it is about pictures.
        let write = |name: &str, value: Value| {
            std::fs::write(dir.path().join(name), value.to_string()).unwrap()
        };
        write("preprocessor_config.json", json!({"size": 8}));
        write("processor_config.json", json!({"processor_class": "CLIPProcessor"}));
        assert_eq!(open("vit").unwrap().size(), Some((8, 8)));
        write("processor_config.json", json!({"image_processor": {"size": 9}}));
        let error = open("vit").unwrap_err().to_string();
        assert!(error.contains("processor_config.json': it makes pictures of 9 x 9"), "{error}");
    }
}
