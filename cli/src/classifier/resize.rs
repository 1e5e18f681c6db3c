//! Pictures in another size, bit for bit as PIL makes them: a picture that was resized in another way is not the one
//! that a model has learned from.

use std::f64::consts::PI;

/// The way to resize, by its number in PIL and in `preprocessor_config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

/// Bytes of several channels, row after row.
#[derive(Debug, Clone)]
pub struct Raster {
    pub bytes: Vec<u8>,
    pub channels: usize,
    pub width: usize,
    pub height: usize,
}

/// Bits behind the point of a weight.
const BITS: u32 = 22;

impl Filter {
    pub fn numbered(number: u64) -> Option<Self> {
        let all = [
            Filter::Nearest,
            Filter::Lanczos,
            Filter::Bilinear,
            Filter::Bicubic,
            Filter::Box,
            Filter::Hamming,
        ];
        all.get(usize::try_from(number).ok()?).copied()
    }

    /// The distance that it reaches.
    fn support(self) -> f64 {
        match self {
            Filter::Nearest | Filter::Box => 0.5,
            Filter::Bilinear | Filter::Hamming => 1.,
            Filter::Bicubic => 2.,
            Filter::Lanczos => 3.,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0. { 1. } else { (x * PI).sin() / (x * PI) };
        let far = x.abs();
        match self {
            Filter::Nearest | Filter::Box if x > -0.5 && x <= 0.5 => 1.,
            Filter::Bilinear if far < 1. => 1. - far,
            Filter::Hamming if far < 1. => sinc(x) * (0.54 + 0.46 * (x * PI).cos()),
            Filter::Bicubic if far < 1. => (1.5 * far - 2.5) * far * far + 1.,
            Filter::Bicubic if far < 2. => ((far - 5.) * far + 8.) * far * -0.5 + 2.,
            Filter::Lanczos if (-3. ..3.).contains(&x) => sinc(x) * sinc(x / 3.),
            _ => 0.,
        }
    }

    /// Per place of the new edge, the first place of the old one that it is made of, and the weights from there on.
    fn weights(self, old: usize, new: usize) -> Vec<(usize, Vec<i32>)> {
        let scale = old as f64 / new as f64;
        let stretch = scale.max(1.);
        let support = self.support() * stretch;
        let place = |at: usize| {
            let center = (at as f64 + 0.5) * scale;
            if self == Filter::Nearest {
                return ((center as usize).min(old - 1), vec![1 << BITS]);
            }
            let first = (center - support + 0.5).max(0.) as usize;
            let end = ((center + support + 0.5) as usize).min(old);
            let weight = |x: usize| self.weight((x as f64 - center + 0.5) / stretch);
            let weights: Vec<f64> = (first..end).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |weight: &f64| (weight / sum * f64::from(1 << BITS)).round() as i32;
            (first, weights.iter().map(fixed).collect())
        };
        (0..new).map(place).collect()
    }
}

impl Raster {
    pub fn resized(self, width: usize, height: usize, filter: Filter) -> Self {
        let Raster { channels, height: old, .. } = self;
        // Neighbours in a row, then in a column.
        let wide = if width == self.width {
            self
        } else {
            let weights = filter.weights(self.width, width);
            let bytes = convolved(&self.bytes, (old, self.width, channels), &weights);
            Raster { bytes, width, ..self }
        };
        if height == old {
            return wide;
        }
        let weights = filter.weights(old, height);
        let bytes = convolved(&wide.bytes, (1, old, channels * width), &weights);
        Raster { bytes, height, ..wide }
    }

    /// The part of this size in the middle.
    pub fn middle(&self, width: usize, height: usize) -> Self {
        let (x, y) = ((self.width - width) / 2, (self.height - height) / 2);
        let row = |row: usize| {
            let start = ((y + row) * self.width + x) * self.channels;
            &self.bytes[start..start + width * self.channels]
        };
        let bytes = (0..height).flat_map(row).copied().collect();
        Raster { bytes, width, height, channels: self.channels }
    }
}

/// Bytes `[rows, old, block]` to `[rows, new, block]`.
fn convolved(
    bytes: &[u8],
    (rows, old, block): (usize, usize, usize),
    weights: &[(usize, Vec<i32>)],
) -> Vec<u8> {
    let mut new = Vec::with_capacity(rows * weights.len() * block);
    for row in 0..rows {
        for (first, weights) in weights {
            let start = (row * old + first) * block;
            for byte in start..start + block {
                let part =
                    |(at, weight): (usize, &i32)| i32::from(bytes[byte + at * block]) * weight;
                let sum: i32 = weights.iter().enumerate().map(part).sum();
                new.push(((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8);
            }
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The other ways are tested beside PIL.
    #[test]
    fn the_nearest_is_picked_and_a_box_is_a_mean() {
        let image =
            Raster { bytes: vec![1, 10, 3, 20, 5, 31, 7, 41], channels: 2, width: 2, height: 2 };
        let resized = |filter| image.clone().resized(1, 1, filter).bytes;
        assert_eq!(resized(Filter::Nearest), [7, 41]);
        // Rounded twice: in rows, then in columns.
        assert_eq!(resized(Filter::Box), [4, 26]);
        let wide = image.resized(4, 2, Filter::Nearest);
        assert_eq!(wide.bytes, [1, 10, 1, 10, 3, 20, 3, 20, 5, 31, 5, 31, 7, 41, 7, 41]);
        assert_eq!(wide.middle(2, 2).bytes, [1, 10, 3, 20, 5, 31, 7, 41]);
    }
}
