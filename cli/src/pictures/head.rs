//! The size of a picture, without its pixels, and whether its file is whole.

use std::io::Cursor;

use anyhow::{ensure, Context, Result};
use image::metadata::Orientation;
use image::{ImageDecoder, ImageFormat, ImageReader};

use super::picture::{check_size, decoded, has_end, orientation};
use super::png;

/// Width and height of a picture in these bytes, turned as its EXIF or XMP data say.
///
/// # Errors
/// If it is no picture, or cut off, or one that would fill the memory.
pub fn size(bytes: &[u8]) -> Result<(u32, u32)> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let format = reader.format();
    let mut decoder = reader.into_decoder().context("this is not an image that can be read")?;
    let (width, height) = decoder.dimensions();
    check_size((width, height))?;
    let whole = match format {
        Some(ImageFormat::Jpeg) => has_end(bytes),
        Some(ImageFormat::Png) => png::is_whole(bytes) || decoded(bytes).map(|_| true)?,
        Some(ImageFormat::WebP) => riff_has_end(bytes),
        // Seldom, and small or without compression: its pixels say so.
        _ => decoded(bytes).map(|_| true)?,
    };
    ensure!(whole, "the file is cut off, or damaged");
    let turned = match orientation(&mut decoder, bytes) {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => true,
        Orientation::NoTransforms
        | Orientation::Rotate180
        | Orientation::FlipHorizontal
        | Orientation::FlipVertical => false,
    };
    Ok(if turned { (height, width) } else { (width, height) })
}

fn riff_has_end(bytes: &[u8]) -> bool {
    let length =
        bytes.get(4..8).map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]));
    length.is_some_and(|length| length as usize <= bytes.len().saturating_sub(8))
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, RgbImage};

    use super::*;

    #[test]
    fn a_picture_that_is_cut_off_is_known_by_its_file() {
        let image = RgbImage::from_fn(33, 20, |x, y| {
            image::Rgb([x * 71 % 256, y * 53 % 256, x * y % 256].map(|c| c as u8))
        });
        let formats = [
            ImageFormat::Png,
            ImageFormat::Jpeg,
            ImageFormat::WebP,
            ImageFormat::Gif,
            ImageFormat::Bmp,
            ImageFormat::Tiff,
        ];
        for format in formats {
            let mut bytes = Vec::new();
            let image = DynamicImage::from(image.clone());
            image.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
            assert_eq!(size(&bytes).unwrap(), (33, 20), "{format:?}");
            assert!(size(&bytes[..bytes.len() * 6 / 10]).is_err(), "{format:?}");
            if format == ImageFormat::Png {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                assert!(size(&bytes).unwrap_err().to_string().contains("damaged"));
            }
        }
        assert!(size(b"").is_err() && size(b"a text").is_err());
    }
}
