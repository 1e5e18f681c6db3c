//! Bytes of a picture, and what is cut out of it or put around it.

use image::RgbImage;

/// Bytes of several channels, row after row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raster {
    pub bytes: Vec<u8>,
    pub channels: usize,
    pub width: usize,
    pub height: usize,
}

impl Raster {
    /// In colour, or in grey as PIL makes it.
    pub fn of(image: &RgbImage, channels: usize) -> Self {
        let bytes = if channels == 1 {
            image.pixels().map(|pixel| luma(pixel.0)).collect()
        } else {
            image.as_raw().clone()
        };
        let (width, height) = (image.width() as usize, image.height() as usize);
        Raster { bytes, channels, width, height }
    }

    /// A square with the picture in its middle, and this colour around it.
    pub fn squared(&self, colour: &[u8]) -> Self {
        let edge = self.width.max(self.height);
        let start = |old: usize| -(((edge - old) / 2) as isize);
        self.part(start(self.width), start(self.height), edge, edge, colour)
    }

    /// A part that begins at this place, which may be outside of the picture: there it has this colour.
    pub fn part(
        &self,
        left: isize,
        top: isize,
        width: usize,
        height: usize,
        colour: &[u8],
    ) -> Self {
        let channels = self.channels;
        let mut bytes = colour.repeat(width * height);
        // Columns of the part in which the picture is.
        let first = left.min(0).unsigned_abs().min(width);
        let from = left.max(0) as usize;
        let count = (width - first).min(self.width.saturating_sub(from));
        for row in 0..height {
            let Some(old) = top.checked_add_unsigned(row).and_then(|old| usize::try_from(old).ok())
            else {
                continue;
            };
            if old < self.height && count > 0 {
                let (to, at) =
                    ((row * width + first) * channels, (old * self.width + from) * channels);
                bytes[to..to + count * channels]
                    .copy_from_slice(&self.bytes[at..at + count * channels]);
            }
        }
        Raster { bytes, channels, width, height }
    }
}

/// Grey, as PIL makes it.
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    let [red, green, blue] = [red, green, blue].map(u32::from);
    ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raster(width: usize, height: usize) -> Raster {
        let bytes = (1..=width * height).map(|n| n as u8).collect();
        Raster { bytes, channels: 1, width, height }
    }

    #[test]
    fn a_square_has_its_picture_in_the_middle() {
        let two = Raster { bytes: vec![1, 2], channels: 2, width: 1, height: 1 };
        assert_eq!(two.squared(&[8, 9]), two);
        assert_eq!(raster(2, 1).squared(&[9]).bytes, [1, 2, 9, 9]);
        assert_eq!(
            raster(1, 4).squared(&[9]).bytes,
            [9, 1, 9, 9, 9, 2, 9, 9, 9, 3, 9, 9, 9, 4, 9, 9]
        );
    }
}
