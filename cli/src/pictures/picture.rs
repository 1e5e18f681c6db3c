//! A picture from a file, as PIL reads it for transformers: turned as its EXIF or XMP data say, the first one of
//! several, in RGB.

use std::io::{Cursor, Read};
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use flate2::read::ZlibDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};
use ln_tuning::regular;

use super::{jpeg, png};

/// The most pixels that PIL reads.
const MOST_PIXELS: u64 = 178_956_970;

pub(super) fn check_size((width, height): (u32, u32)) -> Result<()> {
    let pixels = u64::from(width) * u64::from(height);
    ensure!(
        (1..=MOST_PIXELS).contains(&pixels),
        "the picture has {width} x {height} pixels, expected at least 1 and at most {MOST_PIXELS}"
    );
    Ok(())
}

pub fn read(path: &Path) -> Result<RgbImage> {
    let image = regular::read(path).map_err(Into::into).and_then(|bytes| decoded(&bytes));
    image.with_context(|| format!("cannot read the image '{}'", path.display()))
}

/// The picture that a file's bytes hold.
pub fn decoded(given: &[u8]) -> Result<RgbImage> {
    let is_png = image::guess_format(given).is_ok_and(|format| format == ImageFormat::Png);
    let bytes = if is_png { png::mended(given)? } else { given.into() };
    let bytes = &*bytes;
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let format = reader.format();
    let mut decoder = reader.into_decoder()?;
    check_size(decoder.dimensions())?;
    let orientation = orientation(&mut decoder, given);
    let image = if format == Some(ImageFormat::Jpeg) {
        // The decoder would fill in grey.
        ensure!(has_end(bytes), "the file is cut off");
        jpeg::decode(bytes)?
    } else {
        let image = DynamicImage::from_decoder(decoder);
        let image = if is_png && bytes != given {
            image.context("the file is cut off, or damaged")?
        } else {
            image?
        };
        rgb(image, format, bytes)?
    };
    let mut image = DynamicImage::from(image);
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

/// True if a JPEG's markers lead to its end. Telephones write a film behind it, which may hold anything.
pub(super) fn has_end(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(pair) = bytes.get(at..at + 2) {
        match (pair[0], pair[1]) {
            (0xff, 0xd9) => return true,
            // Pixels, fillers, and markers without a length.
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, 0xff) | (..=0xfe, _) => at += 1,
            (0xff, _) => match bytes.get(at + 2..at + 4) {
                Some(length) => at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return false,
            },
        }
    }
    false
}

/// The EXIF data of a PNG that stand behind the pixels, or in a text as ImageMagick writes them.
fn png_exif(bytes: &[u8]) -> Option<Vec<u8>> {
    const KEY: &[u8] = b"Raw profile type exif\0";
    let mut rest = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n")?;
    loop {
        let length = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let data = rest.get(8..length.checked_add(8)?)?;
        match (&rest[4..8], data.strip_prefix(KEY)) {
            (b"eXIf", _) => return Some(data.to_vec()),
            (b"tEXt", Some(text)) => return profile(text),
            (b"zTXt", Some(packed)) => {
                let mut text = Vec::new();
                let packed = packed.get(1..)?;
                ZlibDecoder::new(packed).take(1 << 20).read_to_end(&mut text).ok()?;
                return profile(&text);
            }
            _ => rest = rest.get(length + 12..)?,
        }
    }
}

/// The bytes of a profile: three lines of head, then hexadecimal digits.
fn profile(text: &[u8]) -> Option<Vec<u8>> {
    let lines = text.split(|byte| *byte == b'\n').skip(3);
    let digits: Option<Vec<u32>> = lines.flatten().map(|c| char::from(*c).to_digit(16)).collect();
    let bytes: Vec<u8> =
        digits?.chunks_exact(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect();
    Some(bytes.strip_prefix(b"Exif\0\0").map(<[u8]>::to_vec).unwrap_or(bytes))
}

/// Of the EXIF data, else of the XMP data; those that cannot be read say nothing.
pub(super) fn orientation(decoder: &mut impl ImageDecoder, bytes: &[u8]) -> Orientation {
    match decoder.orientation().unwrap_or(Orientation::NoTransforms) {
        Orientation::NoTransforms => {}
        found => return found,
    }
    let exif = decoder.exif_metadata().ok().flatten().or_else(|| png_exif(bytes));
    if let Some(found) = exif.and_then(|exif| Orientation::from_exif_chunk(&exif)) {
        return found;
    }
    let xmp = decoder.xmp_metadata().ok().flatten().unwrap_or_default();
    let xmp = String::from_utf8_lossy(&xmp);
    // An attribute, or an element.
    let digit = |form: &str| xmp.split_once(form)?.1.chars().next()?.to_digit(10);
    let found = digit("tiff:Orientation=\"").or_else(|| digit("tiff:Orientation>"));
    found.and_then(|n| Orientation::from_exif(n as u8)).unwrap_or(Orientation::NoTransforms)
}

/// Without transparency: the colour that lies below stays. Of 16 bits the upper 8 are kept, or in PNM the nearest 8,
/// but grey of 16 bits is cut off at 255, as PIL does it.
fn rgb(image: DynamicImage, format: Option<ImageFormat>, file: &[u8]) -> Result<RgbImage> {
    let (width, height) = (image.width(), image.height());
    let is_pnm = format == Some(ImageFormat::Pnm);
    let upper = |value: &u16| {
        let value = u32::from(*value);
        if is_pnm {
            ((value * 255 + 32767) / 65535) as u8
        } else {
            (value >> 8) as u8
        }
    };
    // Grey without transparency of its own, but with a shade that is transparent.
    let is_grey = format == Some(ImageFormat::Png) && file.get(25) == Some(&0);
    let bytes: Vec<u8> = match image {
        DynamicImage::ImageLuma16(image) => {
            image.iter().flat_map(|grey| [(*grey).min(255) as u8; 3]).collect()
        }
        DynamicImage::ImageLumaA16(image) if is_grey => {
            image.pixels().flat_map(|pixel| [pixel.0[0].min(255) as u8; 3]).collect()
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
            std::fs::write(&path, [bytes.as_slice(), b"a film\xff\xda\0\x08"].concat()).unwrap();
            read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() * 6 / 10]).unwrap();
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(
                error.contains(&format!("cannot read the image '{}'", path.display())),
                "{error}"
            );
        }
    }

    #[test]
    fn a_damaged_jpeg_is_a_picture_or_an_error_and_never_the_end() {
        let image = RgbImage::from_fn(40, 30, |x, y| image::Rgb([(x * y) as u8, x as u8, y as u8]));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jpg");
        let mut bytes = Vec::new();
        JpegEncoder::new(&mut bytes).encode_image(&image).unwrap();
        let mut refused = 0;
        for at in (2..bytes.len()).step_by(3) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x5a;
            std::fs::write(&path, damaged).unwrap();
            refused += usize::from(read(&path).is_err());
        }
        assert!(refused > 20, "{refused}");
    }

    #[test]
    fn a_picture_that_would_fill_the_memory_or_has_no_pixels_is_refused_by_its_head() {
        for (size, fits) in [("13000 13000", true), ("14000 14000", false), ("0 3", false)] {
            let error = decoded(format!("P6\n{size}\n255\n").as_bytes()).unwrap_err().to_string();
            assert_eq!(!error.starts_with("the picture has"), fits, "{error}");
        }
    }
}
