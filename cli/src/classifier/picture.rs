//! A picture from a file, as PIL reads it for transformers: turned as its EXIF data say, the first one of several, in RGB.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{bail, Context, Result};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage};
use ln_tuning::regular;

/// Refuses a file whose head is not that of a picture.
pub fn check(path: &Path) -> Result<()> {
    open(path)?.into_dimensions().map(drop).context("this is not an image that can be read")
}

fn open(path: &Path) -> Result<ImageReader<BufReader<File>>> {
    Ok(ImageReader::new(BufReader::new(regular::open(path)?)).with_guessed_format()?)
}

pub fn read(path: &Path) -> Result<RgbImage> {
    let decode = || -> Result<RgbImage> {
        let mut decoder = open(path)?.into_decoder()?;
        // EXIF data that cannot be read say nothing.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation);
        rgb(image)
    };
    decode().with_context(|| format!("cannot read the image '{}'", path.display()))
}

/// Without transparency: the colour that lies below stays. Of 16 bits the upper 8 are kept, but grey of 16 bits is cut
/// off at 255, as PIL does it.
fn rgb(image: DynamicImage) -> Result<RgbImage> {
    let (width, height) = (image.width(), image.height());
    let upper = |value: &u16| (value >> 8) as u8;
    let bytes: Vec<u8> = match image {
        DynamicImage::ImageLuma16(image) => {
            image.iter().flat_map(|grey| [(*grey).min(255) as u8; 3]).collect()
        }
        DynamicImage::ImageLumaA16(image) => {
            image.pixels().flat_map(|pixel| [upper(&pixel.0[0]); 3]).collect()
        }
        DynamicImage::ImageRgb16(image) => image.iter().map(upper).collect(),
        DynamicImage::ImageRgba16(image) => {
            image.pixels().flat_map(|pixel| [0, 1, 2].map(|c| upper(&pixel.0[c]))).collect()
        }
        DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_) => {
            bail!("the colours are fractions (32 bits), expected 8 or 16 bits: convert it to PNG")
        }
        image => return Ok(image.into_rgb8()),
    };
    RgbImage::from_raw(width, height, bytes).context("the image has too few bytes")
}
