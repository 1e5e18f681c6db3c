//! 1,797 handwritten digits of the UCI repository, and the domain that the model is adapted to.

use std::io::Read;

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use tch::{Kind, Tensor};

/// See `examples/data/README.md` for source and licence.
const DIGITS: &[u8] = include_bytes!("../data/digits.csv.gz");

/// Images `[n, 1, 8, 8]` with pixels in [−1, 1], and their digits `[n]`.
pub struct Set {
    pub images: Tensor,
    pub labels: Tensor,
}

pub struct Digits {
    pub train: Set,
    pub test: Set,
}

impl Digits {
    /// Rows whose index is 4 modulo 5 are the test set (359), the others train (1,438).
    pub fn load() -> Result<Digits> {
        let mut text = String::new();
        flate2::read::GzDecoder::new(DIGITS).read_to_string(&mut text)?;
        let (mut train, mut test) = (Vec::new(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            let row: Vec<f32> = line
                .split(',')
                .map(|cell| cell.trim().parse().context("not a number"))
                .collect::<Result<_>>()
                .with_context(|| format!("line {} of the digits", index + 1))?;
            ensure!(
                row.len() == 65,
                "line {} of the digits has {} cells, expected 65",
                index + 1,
                row.len()
            );
            if index % 5 == 4 {
                test.push(row)
            } else {
                train.push(row)
            }
        }
        ensure!(
            (train.len(), test.len()) == (1438, 359),
            "{} and {} digits",
            train.len(),
            test.len()
        );
        Ok(Digits { train: Set::of(&train), test: Set::of(&test) })
    }

    /// The new domain: ink and paper change places (16 − x), and the image turns by 90° counter-clockwise.
    pub fn inverted_and_rotated(&self) -> Digits {
        let change = |set: &Set| Set {
            images: (-&set.images).rot90(1, [2, 3]).contiguous(),
            labels: set.labels.shallow_clone(),
        };
        Digits { train: change(&self.train), test: change(&self.test) }
    }
}

/// Grey levels from 0 to 16 become pixels from −1 to 1.
fn pixel(level: &f32) -> f32 {
    level / 8. - 1.
}

/// `preprocessor_config.json`: with it, transformers' image processor computes [`pixel`] from the grey levels.
pub fn preprocessor_config() -> Value {
    json!({
        "image_processor_type": "ViTImageProcessor",
        "do_resize": true,
        "size": {"height": 8, "width": 8},
        "resample": 2,
        "do_rescale": true,
        "rescale_factor": 1. / 16.,
        "do_normalize": true,
        "image_mean": [0.5],
        "image_std": [0.5],
    })
}

impl Set {
    fn of(rows: &[Vec<f32>]) -> Set {
        let pixels: Vec<f32> = rows.iter().flat_map(|row| &row[..64]).map(pixel).collect();
        let labels: Vec<i64> = rows.iter().map(|row| row[64] as i64).collect();
        Set {
            images: Tensor::from_slice(&pixels).view([-1, 1, 8, 8]),
            labels: Tensor::from_slice(&labels),
        }
    }

    pub fn len(&self) -> i64 {
        self.labels.size()[0]
    }

    /// The batches of one epoch, in random order.
    pub fn shuffled(&self, batch: i64) -> impl Iterator<Item = Set> + '_ {
        let order = Tensor::randperm(self.len(), (Kind::Int64, self.labels.device()));
        let batches = order.split(batch, 0);
        batches.into_iter().map(|chosen| Set {
            images: self.images.index_select(0, &chosen),
            labels: self.labels.index_select(0, &chosen),
        })
    }

    pub fn to(&self, device: tch::Device) -> Set {
        Set { images: self.images.to_device(device), labels: self.labels.to_device(device) }
    }
}
