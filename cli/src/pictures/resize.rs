//! Pictures in another size, bit for bit as PIL makes them: a picture that was resized in another way is not the one
//! that a model has learned from.

use std::f64::consts::PI;

use super::raster::Raster;

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
            Filter::Hamming if far < 1. => {
                // Fractions of 32 bits, as in PIL.
                sinc(far) * (f64::from(0.54_f32) + f64::from(0.46_f32) * (far * PI).cos())
            }
            Filter::Bicubic if far < 1. => (1.5 * far - 2.5) * far * far + 1.,
            Filter::Bicubic if far < 2. => ((far - 5.) * far + 8.) * far * -0.5 + 2.,
            Filter::Lanczos if (-3. ..3.).contains(&x) => sinc(x) * sinc(x / 3.),
            _ => 0.,
        }
    }

    /// Per place of the new edge, the first place of the old one that it is made of, and the weights from there on.
    fn weights(self, old: usize, new: usize) -> Vec<(usize, Vec<i32>)> {
        let scale = old as f64 / new as f64;
        if self == Filter::Nearest {
            // PIL adds up, and its sums have their own ends.
            let places = std::iter::successors(Some(scale * 0.5), |at| Some(at + scale));
            let place = |at: f64| ((at as usize).min(old - 1), vec![1 << BITS]);
            return places.take(new).map(place).collect();
        }
        let stretch = scale.max(1.);
        let (support, step) = (self.support() * stretch, 1. / stretch);
        let place = |at: usize| {
            let center = (at as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.) as usize;
            let end = ((center + support + 0.5) as usize).min(old);
            let weight = |x: usize| self.weight((x as f64 - center + 0.5) * step);
            let weights: Vec<f64> = (first..end).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |weight: &f64| (weight / sum * f64::from(1 << BITS)).round() as i32;
            (first, weights.iter().map(fixed).collect())
        };
        (0..new).map(place).collect()
    }
}

impl Raster {
    pub fn resized(&self, width: usize, height: usize, filter: Filter) -> Self {
        // Each direction rounds to bytes, so that their order counts. It is that of Pillow 13; before, rows always came
        // first.
        let (narrower, lower) =
            (self.width.saturating_sub(width), self.height.saturating_sub(height));
        if lower > 2 * narrower {
            self.down(height, filter).across(width, filter)
        } else {
            self.across(width, filter).down(height, filter)
        }
    }

    /// Neighbours in each row make those of a row of another width.
    fn across(&self, width: usize, filter: Filter) -> Self {
        if width == self.width {
            return self.clone();
        }
        let weights = filter.weights(self.width, width);
        let bytes = if self.channels == 1 {
            across::<1>(self, &weights)
        } else {
            across::<3>(self, &weights)
        };
        Raster { bytes, width, ..*self }
    }

    /// Neighbours in each column make those of a column of another height.
    fn down(&self, height: usize, filter: Filter) -> Self {
        if height == self.height {
            return self.clone();
        }
        Raster { bytes: down(self, &filter.weights(self.height, height)), height, ..*self }
    }
}

/// A sum to a byte.
fn byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// Half of the last bit that stays: sums begin with it, to be rounded.
const HALF: i32 = 1 << (BITS - 1);

/// Each row in the new width.
fn across<const CHANNELS: usize>(image: &Raster, weights: &[(usize, Vec<i32>)]) -> Vec<u8> {
    let mut new = Vec::with_capacity(image.height * weights.len() * CHANNELS);
    for row in image.bytes.chunks_exact(image.width * CHANNELS) {
        for (first, weights) in weights {
            let mut sums = [HALF; CHANNELS];
            let pixels = row[first * CHANNELS..].chunks_exact(CHANNELS);
            for (pixel, weight) in pixels.zip(weights) {
                for (sum, byte) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*byte) * weight;
                }
            }
            new.extend(sums.map(byte));
        }
    }
    new
}

/// Rows of the new height.
fn down(image: &Raster, weights: &[(usize, Vec<i32>)]) -> Vec<u8> {
    let length = image.width * image.channels;
    let mut new = Vec::with_capacity(weights.len() * length);
    let mut sums = vec![HALF; length];
    for (first, weights) in weights {
        sums.fill(HALF);
        for (row, weight) in image.bytes[first * length..].chunks_exact(length).zip(weights) {
            for (sum, byte) in sums.iter_mut().zip(row) {
                *sum += i32::from(*byte) * weight;
            }
        }
        new.extend(sums.iter().map(|sum| byte(*sum)));
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The other ways are tested beside PIL.
    #[test]
    fn the_nearest_is_picked_and_a_box_is_a_mean() {
        let image = Raster { bytes: vec![1, 3, 5, 7], channels: 1, width: 2, height: 2 };
        let resized = |filter| image.resized(1, 1, filter).bytes;
        assert_eq!(resized(Filter::Nearest), [7]);
        // Rounded twice: in rows, then in columns.
        assert_eq!(resized(Filter::Box), [4]);
        let wide = image.resized(4, 2, Filter::Nearest);
        assert_eq!(wide.bytes, [1, 1, 3, 3, 5, 5, 7, 7]);
    }
}
