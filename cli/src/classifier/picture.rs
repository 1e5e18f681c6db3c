//! A picture from a file, as PIL reads it for transformers: turned as its EXIF or XMP data say, the first one of
//! several, in RGB.

use std::io::{BufReader, Cursor};
use std::path::Path;

use anyhow::{bail, Context, Result};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};
use ln_tuning::regular;

/// Refuses a file whose head is not that of a picture.
pub fn check(path: &Path) -> Result<()> {
    let reader = ImageReader::new(BufReader::new(regular::open(path)?)).with_guessed_format()?;
    reader.into_dimensions().map(drop).context("this is not an image that can be read")
}

pub fn read(path: &Path) -> Result<RgbImage> {
    let decode = || -> Result<RgbImage> {
        let bytes = regular::read(path)?;
        let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format()?;
        // The decoder would fill in grey.
        if reader.format() == Some(ImageFormat::Jpeg) && !has_end(&bytes) {
            bail!("the file is cut off");
        }
        let mut decoder = reader.into_decoder()?;
        let orientation = orientation(&mut decoder);
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation);
        rgb(image)
    };
    decode().with_context(|| format!("cannot read the image '{}'", path.display()))
}

/// True if an end follows the last beginning of a JPEG's pixels; a thumbnail in front has an end of its own.
fn has_end(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    last(0xd9) > last(0xda)
}

/// Of the EXIF data, else of the XMP data; those that cannot be read say nothing.
fn orientation(decoder: &mut impl ImageDecoder) -> Orientation {
    match decoder.orientation().unwrap_or(Orientation::NoTransforms) {
        Orientation::NoTransforms => {}
        found => return found,
    }
    let exif = decoder.exif_metadata().ok().flatten();
    if exif.is_some_and(|exif| Orientation::from_exif_chunk(&exif).is_some()) {
        return Orientation::NoTransforms;
    }
    let xmp = decoder.xmp_metadata().ok().flatten().unwrap_or_default();
    let xmp = String::from_utf8_lossy(&xmp);
    // An attribute, or an element.
    let digit = |form: &str| xmp.split_once(form)?.1.chars().next()?.to_digit(10);
    let found = digit("tiff:Orientation=\"").or_else(|| digit("tiff:Orientation>"));
    found.and_then(|n| Orientation::from_exif(n as u8)).unwrap_or(Orientation::NoTransforms)
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

#[cfg(test)]
mod tests {
    use image::codecs::jpeg::JpegEncoder;

    use super::*;

    #[test]
    fn a_picture_that_is_cut_off_is_refused_in_every_format() {
        let dir = tempfile::tempdir().unwrap();
        let image = RgbImage::from_fn(32, 32, |x, y| {
            image::Rgb([x * 71 % 256, y * 53 % 256, x * y % 256].map(|c| c as u8))
        });
        for format in ["png", "gif", "bmp", "tiff", "ppm", "webp", "jpg"] {
            let path = dir.path().join(format!("x.{format}"));
            if format == "jpg" {
                JpegEncoder::new(std::fs::File::create(&path).unwrap())
                    .encode_image(&image)
                    .unwrap();
            } else {
                DynamicImage::from(image.clone()).save(&path).unwrap();
            }
            assert_eq!(read(&path).unwrap().dimensions(), (32, 32));
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, [bytes.as_slice(), b"more"].concat()).unwrap();
            read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() * 6 / 10]).unwrap();
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(
                error.contains(&format!("cannot read the image '{}'", path.display())),
                "{error}"
            );
        }
    }
}
