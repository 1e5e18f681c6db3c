//! A picture of any size in patches, as Qwen's models see it.

use anyhow::{ensure, Result};
use serde_json::Value;
use tch::Tensor;

use super::options::Options;
use super::raster::Raster;
use super::resize::Filter;
use super::size::check_area;

#[derive(Debug, Clone)]
pub struct Patches {
    /// Pixels on a side.
    patch: usize,
    /// Patches on a side of the square that becomes one token.
    merge: usize,
    /// A picture is a film of so many frames.
    frames: usize,
    /// The fewest and the most pixels of a picture; as it is without them.
    pixels: Option<(usize, usize)>,
    filter: Filter,
}

/// The settings, with the names of the model's and what those are where it is silent.
const OF_MODEL: [(&str, &str, u64); 3] = [
    ("patch_size", "patch_size", 16),
    ("merge_size", "spatial_merge_size", 2),
    ("temporal_patch_size", "temporal_patch_size", 2),
];

impl Patches {
    /// Those of a processor's file, which must be the model's.
    pub fn open(options: &Options, config: &Value) -> Result<Self> {
        let number = |key: &str| -> Result<usize> {
            let found = options.value(key).as_u64().filter(|number| (1..=1024).contains(number));
            found.map_or_else(|| options.wrong(key, "1 to 1024"), |number| Ok(number as usize))
        };
        let mut settings = [0; 3];
        for ((key, of_model, usual), setting) in OF_MODEL.iter().zip(&mut settings) {
            *setting = number(key)?;
            let vision = &config["vision_config"];
            // Those of Qwen2.5-VL are smaller than those of Qwen3-VL.
            let smaller = *key == "patch_size" && config["model_type"] == "qwen2_5_vl";
            let usual = if smaller { 14 } else { *usual };
            let model = vision[*of_model].as_u64().unwrap_or(usual);
            if vision.is_object() && *setting as u64 != model {
                options.wrong(key, &format!("{model}, the '{of_model}' of config.json"))?;
            }
        }
        let [patch, merge, frames] = settings;
        let pixels = options.switch("do_resize", true)?.then(|| pixels(options)).transpose()?;
        Ok(Patches { patch, merge, frames, pixels, filter: options.filter()? })
    }

    /// The height and width of a picture of this height and width.
    fn size(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        let square = self.patch * self.merge;
        let Some((fewest, most)) = self.pixels else {
            ensure!(
                height.is_multiple_of(square) && width.is_multiple_of(square),
                "the picture has {width} x {height} pixels, and 'do_resize' is false: expected multiples of {square}"
            );
            return Ok((height, width));
        };
        let (long, short) = (height.max(width), height.min(width));
        ensure!(
            long <= 200 * short,
            "the picture has {width} x {height} pixels: expected at most 200 times as many on one side as on the other"
        );
        let scaled = |scale: &dyn Fn(f64) -> f64| {
            [height, width].map(|side| scale(side as f64) as usize * square)
        };
        let edge = square as f64;
        let mut new = scaled(&|side| (side / edge).round_ties_even());
        let all = (height * width) as f64;
        if new[0] * new[1] > most {
            let beta = (all / most as f64).sqrt();
            new = scaled(&|side| (side / beta / edge).floor().max(1.));
        } else if new[0] * new[1] < fewest {
            let beta = (fewest as f64 / all).sqrt();
            new = scaled(&|side| (side * beta / edge).ceil());
        }
        ensure!(
            new[0] > 0 && new[1] > 0,
            "the image processor leaves {} x {} pixels of {width} x {height}: set 'shortest_edge' of its 'size' to {} or more",
            new[1],
            new[0],
            square * square
        );
        check_area(new[0], new[1])?;
        Ok((new[0], new[1]))
    }

    /// The rows and columns of patches of a picture of this height and width.
    pub fn grid(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        let (high, wide) = self.size(height, width)?;
        Ok((high / self.patch, wide / self.patch))
    }

    pub fn resized(&self, image: &Raster) -> Result<Raster> {
        let (high, wide) = self.size(image.height, image.width)?;
        Ok(image.resized(wide, high, self.filter))
    }

    /// The patches, `[patches, channels · frames · height · width]`: those of a square stand together, squares row after
    /// row. `values` are those of each byte, per channel.
    pub fn packed(&self, image: &Raster, values: &[Vec<f32>]) -> Result<Tensor> {
        let Patches { patch, merge, frames, .. } = *self;
        let (rows, columns) = (image.height / patch, image.width / patch);
        let width = image.channels * frames * patch * patch;
        let mut all = Vec::with_capacity(rows * columns * width);
        for at in 0..rows * columns {
            let (square, inside) = (at / (merge * merge), at % (merge * merge));
            let squares = columns / merge;
            let top = ((square / squares) * merge + inside / merge) * patch;
            let left = ((square % squares) * merge + inside % merge) * patch;
            for (channel, values) in values.iter().enumerate() {
                let start = all.len();
                for row in top..top + patch {
                    let first = (row * image.width + left) * image.channels + channel;
                    let bytes = image.bytes[first..].iter().step_by(image.channels).take(patch);
                    all.extend(bytes.map(|byte| values[usize::from(*byte)]));
                }
                for _ in 1..frames {
                    all.extend_from_within(start..start + patch * patch);
                }
            }
        }
        Ok(Tensor::f_from_slice(&all)?.f_view([(rows * columns) as i64, width as i64])?)
    }
}

/// The fewest and the most pixels, under the names of today and those of former files, which win.
fn pixels(options: &Options) -> Result<(usize, usize)> {
    let usual = &options.class.defaults["size"];
    let size = Some(options.value("size")).filter(|size| !size.is_null()).unwrap_or(usual);
    let mut fields = size.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let known = |(key, _): (&String, &Value)| ["shortest_edge", "longest_edge"].contains(&&**key);
    if !size.is_object() || !fields.all(known) {
        options.wrong::<()>(
            "size",
            "an object with 'shortest_edge' and 'longest_edge', numbers of pixels",
        )?;
    }
    let of = |former: &str, key: &str| -> Result<usize> {
        let given = options.value(former);
        let given = if given.is_null() { &size[key] } else { given };
        let found = given.as_u64().filter(|number| (1..=1 << 32).contains(number));
        let words = || {
            format!(
                "'size' is {size} and '{former}' {}: expected numbers of pixels in '{key}'",
                options.value(former)
            )
        };
        Ok(found.ok_or_else(|| options.fault(&words()))? as usize)
    };
    Ok((of("min_pixels", "shortest_edge")?, of("max_pixels", "longest_edge")?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn patches(given: Value, config: &Value) -> Result<Patches> {
        let dir = tempfile::tempdir()?;
        let mut given = given;
        given["image_processor_type"] = json!("Qwen2VLImageProcessorFast");
        std::fs::write(dir.path().join("preprocessor_config.json"), given.to_string())?;
        Patches::open(&Options::open(dir.path(), config)?, config)
    }

    #[test]
    fn settings_that_are_not_the_models_are_refused_by_name() {
        let config = json!({"model_type": "qwen3_vl", "vision_config": {"patch_size": 14}});
        patches(json!({"size": {"longest_edge": 16_777_216, "shortest_edge": 65_536}}), &config)
            .unwrap();
        for (given, words) in [
            (
                json!({"patch_size": 16}),
                "'patch_size' is 16, expected 14, the 'patch_size' of config.json",
            ),
            (json!({"merge_size": 1}), "'merge_size' is 1, expected 2, the 'spatial_merge_size'"),
            (json!({"temporal_patch_size": 0}), "'temporal_patch_size' is 0, expected 1 to 1024"),
            (json!({"size": 224}), "'size' is 224, expected an object with 'shortest_edge'"),
            (json!({"size": {"height": 3, "width": 3}}), "expected an object with 'shortest_edge'"),
            (
                json!({"size": {"shortest_edge": 3136}}),
                "expected numbers of pixels in 'longest_edge'",
            ),
            (json!({"max_pixels": -1}), "'max_pixels' -1: expected numbers of pixels"),
            (json!({"do_center_crop": true}), "'do_center_crop' is true, which is not implemented"),
        ] {
            let error = format!("{:#}", patches(given, &config).unwrap_err());
            assert!(error.contains(words) && error.contains("preprocessor_config.json"), "{error}");
        }
        let as_it_is = patches(json!({"do_resize": false}), &config).unwrap();
        assert_eq!(as_it_is.grid(28, 56).unwrap(), (2, 4));
        let error = as_it_is.grid(28, 57).unwrap_err().to_string();
        assert!(error.contains("57 x 28 pixels") && error.contains("multiples of 28"), "{error}");
        let error = patches(json!({}), &config).unwrap().grid(2, 401).unwrap_err().to_string();
        assert!(error.contains("at most 200 times as many"), "{error}");
    }

    proptest! {
        /// Never a panic, and never pixels without an end.
        #[test]
        fn any_picture_is_as_large_as_the_settings_say_or_an_error(
            height in 1..100_000_usize, width in 1..100_000_usize, a in 1..1_000_000_u64, b in 1..1_000_000_u64,
        ) {
            let given = json!({"min_pixels": a, "size": {"longest_edge": b, "shortest_edge": 1}});
            let patches = patches(given, &json!({})).unwrap();
            if let Ok((rows, columns)) = patches.grid(height, width) {
                prop_assert!(rows % 2 == 0 && columns % 2 == 0 && rows * columns > 0);
                // A square is the least, and long pictures keep a side of one.
                prop_assert!(rows * columns * 196 <= (b as usize).max(784 * 4 * 202).max(4 * a as usize));
            }
        }
    }
}
