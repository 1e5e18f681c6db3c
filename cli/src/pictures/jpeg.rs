//! JPEG, by the library that PIL uses too: its rounding of brightness and colour is what models have learned.

use std::panic::catch_unwind;

use anyhow::{anyhow, Context, Result};
use image::RgbImage;
use mozjpeg::{ColorSpace, Decompress};

/// Pixels in RGB, as they stand in the file.
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    // The library leaves by unwinding when the data cannot be read.
    let decoded = catch_unwind(|| pixels(bytes)).map_err(|payload| {
        let words = payload.downcast_ref::<String>().cloned();
        anyhow!(words.unwrap_or_else(|| "the data cannot be read".to_owned()))
    })?;
    let (width, height, pixels) = decoded?;
    RgbImage::from_raw(width as u32, height as u32, pixels).context("the image has too few bytes")
}

fn pixels(bytes: &[u8]) -> std::io::Result<(usize, usize, Vec<u8>)> {
    let image = Decompress::new_mem(bytes)?;
    let size = (image.width(), image.height());
    let pixels = match image.color_space() {
        ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK => {
            let mut lines = image.to_colorspace(ColorSpace::JCS_CMYK)?;
            let inks: Vec<[u8; 4]> = lines.read_scanlines()?;
            lines.finish()?;
            inks.into_iter().flat_map(printed).collect()
        }
        _ => {
            let mut lines = image.rgb()?;
            let pixels = lines.read_scanlines::<u8>()?;
            lines.finish()?;
            pixels
        }
    };
    Ok((size.0, size.1, pixels))
}

/// Inks on white. As PIL has it, all files with four inks are inverted, with Adobe's mark or without.
fn printed([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let light = u32::from(black);
    [cyan, magenta, yellow].map(|inverted| {
        let product = u32::from(255 - inverted) * light + 128;
        (light - ((product >> 8) + product) / 256) as u8
    })
}
