//! Images as a model sees them: resized, cut and normalised.

use std::path::Path;

use anyhow::{ensure, Context, Result};
use image::RgbImage;
use serde_json::Value;

use super::picture;
use super::resize::{Filter, Raster};
use crate::text::files;

/// The most pixels of an image that is made larger or smaller.
const MOST_PIXELS: usize = 1 << 27;

/// The preparation of images for a model: `config.json` and `preprocessor_config.json`.
#[derive(Debug, Clone)]
pub struct Preparation {
    pub size: u32,
    pub channels: usize,
    /// The length that the shorter edge gets first, before the middle is cut out; none: all is squeezed.
    shortest: Option<u32>,
    filter: Filter,
    /// Bytes are multiplied by this.
    factor: f32,
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl Preparation {
    pub fn open(model: &Path, config: &Value) -> Result<Self> {
        let path = model.join("preprocessor_config.json");
        let given = files::json(&path)?;
        let number = |value: &Value, default: u64| value.as_u64().unwrap_or(default);
        let channels = number(&config["num_channels"], 3) as usize;
        let normalised = given["do_normalize"] != false;
        let list = |key: &str, without: f32| -> Result<Vec<f32>> {
            match given[key].as_array().filter(|_| normalised) {
                None if normalised => Ok(vec![0.5; channels]),
                None => Ok(vec![without; channels]),
                Some(list) => {
                    let numbers = list.iter().filter_map(Value::as_f64).map(|x| x as f32);
                    let numbers: Vec<f32> = numbers.collect();
                    ensure!(
                        numbers.len() == channels,
                        "'{}': '{key}' is {}, expected {channels} numbers, one for each channel",
                        path.display(),
                        given[key]
                    );
                    Ok(numbers)
                }
            }
        };
        let factor = given["rescale_factor"].as_f64().unwrap_or(1. / 255.);
        let shortest = given["size"]["shortest_edge"].as_u64();
        Ok(Preparation {
            size: number(&config["image_size"], 224) as u32,
            channels,
            shortest: shortest.filter(|_| given["do_center_crop"] == true).map(|edge| edge as u32),
            filter: match &given["resample"] {
                Value::Null => Filter::Bilinear,
                number => number.as_u64().and_then(Filter::numbered).with_context(|| {
                    format!("'{}': 'resample' is {number}, expected 0 to 5", path.display())
                })?,
            },
            factor: if given["do_rescale"] == false { 1. } else { factor as f32 },
            mean: list("image_mean", 0.)?,
            std: list("image_std", 1.)?,
        })
    }

    /// `[channels, size, size]`, one value after the other.
    pub fn pixels(&self, path: &Path) -> Result<Vec<f32>> {
        let image = picture::read(path)?;
        let bytes = if self.channels == 1 { grey(&image) } else { image.to_vec() };
        let (width, height) = (image.width() as usize, image.height() as usize);
        let channels = if self.channels == 1 { 1 } else { 3 };
        let place = || format!("cannot read the image '{}'", path.display());
        let raster = Raster { bytes, channels, width, height };
        let bytes = self.resized(raster).with_context(place)?.bytes;
        let (area, channels) = ((self.size as usize).pow(2), self.channels);
        ensure!(
            bytes.len() == area * channels,
            "a model with {channels} channels, expected 1 or 3"
        );
        let value = |channel: usize, place: usize| {
            let byte = f32::from(bytes[place * channels + channel]);
            (byte * self.factor - self.mean[channel]) / self.std[channel]
        };
        let places = (0..channels).flat_map(|c| (0..area).map(move |p| (c, p)));
        Ok(places.map(|(c, p)| value(c, p)).collect())
    }

    fn resized(&self, image: Raster) -> Result<Raster> {
        let size = self.size as usize;
        let Some(shortest) = self.shortest else {
            return Ok(image.resized(size, size, self.filter));
        };
        let (shortest, short) = (self.size.max(shortest) as usize, image.width.min(image.height));
        let scaled = |edge: usize| (shortest * edge) / short;
        let (width, height) = (scaled(image.width), scaled(image.height));
        ensure!(
            width.checked_mul(height).is_some_and(|pixels| pixels <= MOST_PIXELS),
            "'shortest_edge' {shortest} of preprocessor_config.json makes {width} x {height} pixels of it, expected \
             at most {MOST_PIXELS}"
        );
        Ok(image.resized(width, height, self.filter).middle(size, size))
    }
}

/// Grey, as PIL makes it.
fn grey(image: &RgbImage) -> Vec<u8> {
    let luma = |pixel: &image::Rgb<u8>| {
        let [red, green, blue] = pixel.0.map(u32::from);
        ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16) as u8
    };
    image.pixels().map(luma).collect()
}

#[cfg(test)]
mod tests {
    use image::GrayImage;
    use serde_json::json;

    use super::*;

    #[test]
    fn pixels_are_rescaled_and_normalised_as_the_preprocessor_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        GrayImage::from_raw(2, 2, vec![0, 4, 8, 16]).unwrap().save(&path).unwrap();
        let pixels = |given: Value| {
            std::fs::write(dir.path().join("preprocessor_config.json"), given.to_string()).unwrap();
            let config = json!({"image_size": 2, "num_channels": 1});
            Preparation::open(dir.path(), &config)?.pixels(&path)
        };
        let half = json!([0.5]);
        for (given, expected) in [
            (
                json!({"rescale_factor": 0.0625, "image_mean": half, "image_std": half}),
                [-1., -0.5, 0., 1.],
            ),
            (json!({"rescale_factor": 0.125, "do_normalize": false}), [0., 0.5, 1., 2.]),
            (json!({"do_rescale": false, "do_normalize": false}), [0., 4., 8., 16.]),
        ] {
            assert_eq!(pixels(given.clone()).unwrap(), expected, "{given}");
        }
        let error = pixels(json!({"image_mean": [0.5, 0.5, 0.5]})).unwrap_err().to_string();
        assert!(error.contains("'image_mean' is [0.5,0.5,0.5], expected 1 numbers"), "{error}");
    }
}
