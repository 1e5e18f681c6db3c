//! Images: found in a folder for each class, and prepared for a model.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use image::imageops::FilterType;
use image::{DynamicImage, ImageReader};
use ln_tuning::{natural_cmp, regular, ErrorKind};
use serde_json::Value;

use crate::records::digest::Digest;

const ENDS: [&str; 3] = ["png", "jpg", "jpeg"];

/// The files of each class, in natural order.
pub fn folder(dir: &Path, digest: &mut Digest) -> Result<Vec<(PathBuf, String)>> {
    let sorted = |dir: &Path| -> Result<Vec<PathBuf>> {
        let paths = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path()));
        let mut paths = paths.collect::<Result<Vec<_>>>()?;
        paths.sort_by(|a, b| natural_cmp(&a.to_string_lossy(), &b.to_string_lossy()));
        Ok(paths)
    };
    let mut files = Vec::new();
    for class in sorted(dir)?.into_iter().filter(|path| path.is_dir()) {
        let name = class.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for file in sorted(&class)? {
            let end = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            if ENDS.contains(&end.as_str()) {
                digest.add(file.to_string_lossy().as_bytes());
                digest.add(&file.metadata()?.len().to_le_bytes());
                files.push((file, name.clone()));
            }
        }
    }
    ensure!(!files.is_empty(), "there are no folders of classes with {} in it", ENDS.join(", "));
    Ok(files)
}

/// Refuses a file whose head is not that of an image.
pub fn check(path: &Path) -> Result<()> {
    let reader = open(path)?;
    reader.into_dimensions().map(drop).context("this is not an image that can be read")
}

fn open(path: &Path) -> Result<ImageReader<BufReader<File>>> {
    let mut reader = ImageReader::new(BufReader::new(regular::open(path)?));
    if let Ok(format) = image::ImageFormat::from_path(path) {
        reader.set_format(format);
    }
    Ok(reader.with_guessed_format()?)
}

/// The preparation of images for a model: `config.json` and `preprocessor_config.json`.
#[derive(Debug, Clone)]
pub struct Preparation {
    pub size: u32,
    pub channels: usize,
    /// The length that the shorter edge gets first, before the middle is cut out; none: all is squeezed.
    shortest: Option<u32>,
    filter: FilterType,
    /// Bytes are multiplied by this.
    factor: f32,
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl Preparation {
    pub fn open(model: &Path, config: &Value) -> Result<Self> {
        let path = model.join("preprocessor_config.json");
        let given: Value = match regular::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("'{}' is not JSON", path.display()))?,
            Err(error) if error.kind() == ErrorKind::MissingFile => Value::Null,
            Err(error) => return Err(error.into()),
        };
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
            filter: match given["resample"].as_u64() {
                Some(3) => FilterType::CatmullRom,
                Some(0) => FilterType::Nearest,
                Some(1) => FilterType::Lanczos3,
                _ => FilterType::Triangle,
            },
            factor: if given["do_rescale"] == false { 1. } else { factor as f32 },
            mean: list("image_mean", 0.)?,
            std: list("image_std", 1.)?,
        })
    }

    /// `[channels, size, size]`, one value after the other.
    pub fn pixels(&self, path: &Path) -> Result<Vec<f32>> {
        let place = || format!("cannot read the image '{}'", path.display());
        let image = open(path).with_context(place)?.decode();
        let image = self.resized(&image.with_context(place)?);
        let bytes = match self.channels {
            1 => image.into_luma8().into_raw(),
            _ => image.into_rgb8().into_raw(),
        };
        let (area, channels) = ((self.size * self.size) as usize, self.channels);
        ensure!(
            bytes.len() == area * channels,
            "a model with {channels} channels, expected 1 or 3"
        );
        let value = |channel: usize, place: usize| {
            let byte = f32::from(bytes[place * channels + channel]);
            (byte * self.factor - self.mean[channel]) / self.std[channel]
        };
        Ok((0..channels)
            .flat_map(|c| (0..area).map(move |p| (c, p)))
            .map(|(c, p)| value(c, p))
            .collect())
    }

    fn resized(&self, image: &DynamicImage) -> DynamicImage {
        let size = self.size;
        let Some(shortest) = self.shortest else {
            return image.resize_exact(size, size, self.filter);
        };
        let (width, height) = (image.width(), image.height());
        let scale = f64::from(shortest.max(size)) / f64::from(width.min(height));
        let scaled = |edge: u32| ((f64::from(edge) * scale).round() as u32).max(size);
        let (width, height) = (scaled(width), scaled(height));
        let image = image.resize_exact(width, height, self.filter);
        image.crop_imm((width - size) / 2, (height - size) / 2, size, size)
    }
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
