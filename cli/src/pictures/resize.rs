//! Pictures in another size, bit for bit as PIL makes them: a picture that was resized in another way is not the one
//! that a model has learned from.

use std::f64::consts::PI;
use std::ops::Range;

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

    /// Per place of a part of the new edge, the first place of the old one that it is made of, and the weights from
    /// there on.
    fn weights(self, old: usize, new: usize, part: Range<usize>) -> Vec<(usize, Vec<i32>)> {
        let scale = old as f64 / new as f64;
        if self == Filter::Nearest {
            // PIL adds up, and its sums have their own ends.
            let places = std::iter::successors(Some(scale * 0.5), |at| Some(at + scale));
            let place = |at: f64| ((at as usize).min(old - 1), vec![1 << BITS]);
            return places.take(part.end).skip(part.start).map(place).collect();
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
        part.map(place).collect()
    }
}

impl Raster {
    pub fn resized(&self, width: usize, height: usize, filter: Filter) -> Self {
        self.middle_of_resized((width, height), filter, (width, height))
    }

    /// The part of a size in the middle of the picture in another size; zeros where the part is larger. Nothing else of
    /// it is computed. Sizes are widths and heights.
    pub fn middle_of_resized(
        &self,
        (width, height): (usize, usize),
        filter: Filter,
        (wide, high): (usize, usize),
    ) -> Self {
        // Halves are rounded down, those of negative numbers too.
        let start = |all: usize, part: usize| (all as isize - part as isize).div_euclid(2);
        let (left, top) = (start(width, wide), start(height, high));
        let within = |start: isize, part: usize, all: usize| {
            let first = start.max(0) as usize;
            first..(first + part).min(all)
        };
        let (columns, rows) = (within(left, wide, width), within(top, high, height));
        // Each direction rounds to bytes, so that their order counts. It is that of Pillow 13; before, rows always came
        // first.
        let (narrower, lower) =
            (self.width.saturating_sub(width), self.height.saturating_sub(height));
        let middle = if lower > 2 * narrower {
            self.down(height, rows, filter).across(width, columns, filter)
        } else {
            self.across(width, columns, filter).down(height, rows, filter)
        };
        if (middle.width, middle.height) == (wide, high) {
            return middle;
        }
        middle.part(left.min(0), top.min(0), wide, high, &vec![0; self.channels])
    }

    /// Neighbours in each row make those of a row of another width, of which some columns are kept.
    fn across(&self, width: usize, columns: Range<usize>, filter: Filter) -> Self {
        if width == self.width {
            let colour = vec![0; self.channels];
            return self.part(columns.start as isize, 0, columns.len(), self.height, &colour);
        }
        let weights = filter.weights(self.width, width, columns);
        let bytes = if self.channels == 1 {
            across::<1>(self, &weights)
        } else {
            across::<3>(self, &weights)
        };
        Raster { bytes, width: weights.len(), ..*self }
    }

    /// Neighbours in each column make those of a column of another height, of which some rows are kept.
    fn down(&self, height: usize, rows: Range<usize>, filter: Filter) -> Self {
        if height == self.height {
            let colour = vec![0; self.channels];
            return self.part(0, rows.start as isize, self.width, rows.len(), &colour);
        }
        let weights = filter.weights(self.height, height, rows);
        Raster { bytes: down(self, &weights), height: weights.len(), ..*self }
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

    #[test]
    fn the_middle_of_a_picture_is_cut_out_and_what_lies_beyond_its_edges_is_zero() {
        let raster = |width: usize, height: usize| {
            let bytes = (1..=width * height).map(|n| n as u8).collect();
            Raster { bytes, channels: 1, width, height }
        };
        let middle = |image: Raster, wide: usize, high: usize| {
            let size = (image.width, image.height);
            image.middle_of_resized(size, Filter::Nearest, (wide, high)).bytes
        };
        assert_eq!(middle(raster(4, 3), 2, 1), [6, 7]);
        // Of an odd rest, the larger half is on the right and below; around a small picture, on the left and above.
        assert_eq!(middle(raster(3, 1), 2, 1), [1, 2]);
        assert_eq!(middle(raster(1, 1), 2, 2), [0, 0, 0, 1]);
        assert_eq!(middle(raster(3, 1), 1, 2), [0, 2]);
    }

    #[test]
    fn the_middle_is_what_the_whole_picture_would_have_there() {
        let bytes = (0..19 * 23 * 3).map(|n| (n * n % 251) as u8).collect();
        let image = Raster { bytes, channels: 3, width: 19, height: 23 };
        for filter in [Filter::Nearest, Filter::Lanczos, Filter::Bicubic, Filter::Box] {
            for size in [(7, 9), (30, 9), (19, 40), (19, 23), (33, 23)] {
                let whole = image.resized(size.0, size.1, filter);
                for part in [(5, 4), (7, 30), (19, 1), (40, 50)] {
                    let middle = image.middle_of_resized(size, filter, part);
                    assert_eq!(
                        middle,
                        whole.middle_of_resized(size, filter, part),
                        "{size:?} {part:?}"
                    );
                }
            }
        }
    }
}
