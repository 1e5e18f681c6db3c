//! The settings of an image processor: `preprocessor_config.json`, or `image_processor` in `processor_config.json`.

use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use serde_json::{json, Value};

use super::class::{Class, Scheme};
use super::resize::Filter;
use super::size::Size;
use crate::text::files;

/// Settings, with those of the class where the file has none.
pub struct Options {
    /// The file, for errors.
    place: String,
    pub class: Class,
    given: Value,
}

/// The switches of every processor.
const SWITCHES: [&str; 4] = ["do_convert_rgb", "do_resize", "do_rescale", "do_normalize"];

/// Switches that change no pixel.
const HARMLESS: [&str; 3] = ["do_reduce_labels", "do_sample_frames", "do_convert_annotations"];

/// Settings of other processors that change pixels, and are no switches.
const OTHERS: [&str; 5] =
    ["rescale_offset", "crop_pct", "size_divisor", "normalize_factor", "use_square_size"];

impl Options {
    /// Those of a model's directory; a file of the newer name wins.
    pub fn open(dir: &Path, config: &Value) -> Result<Self> {
        let newer = dir.join("processor_config.json");
        let older = dir.join("preprocessor_config.json");
        let mut given = files::json(&newer)?["image_processor"].take();
        let mut place = format!("'{}'", newer.display());
        if given.is_null() {
            given = files::json(&older)?;
            place = format!("'{}'", older.display());
        }
        let model_type = config["model_type"].as_str().unwrap_or_default();
        if given.is_null() {
            // They have been trained without a file before, and their processors do the same with every picture.
            let size = match model_type {
                "vit" | "dinov2" => config["image_size"].as_u64().unwrap_or(224),
                _ => bail!(
                    "'{}' is missing: it says what the model's pictures are like. Save it with \
                     AutoImageProcessor.from_pretrained(…).save_pretrained(…)",
                    older.display()
                ),
            };
            given = json!({"image_processor_type": "ViTImageProcessor", "size": size});
        }
        ensure!(given.is_object(), "{place}: expected an object, found {given}");
        let class = Class::of(&given, model_type).with_context(|| place.clone())?;
        let options = Options { place, class, given };
        options.refuse_others()?;
        Ok(options)
    }

    /// Refuses what changes pixels in other processors, and would not here.
    fn refuse_others(&self) -> Result<()> {
        let of_scheme: &[&str] = match self.class.scheme {
            Scheme::Plain | Scheme::Squared | Scheme::Pinpoints => &["do_center_crop", "do_pad"],
            Scheme::Resized | Scheme::Patches => &[],
            Scheme::Split => &["do_image_splitting", "do_pad"],
        };
        let fields = self.given.as_object().into_iter().flatten();
        for (key, value) in fields.filter(|(_, value)| !value.is_null() && **value != false) {
            let name = key.as_str();
            let known = [&SWITCHES, of_scheme, &HARMLESS].concat().contains(&name);
            let changes = name.starts_with("do_") && !known || OTHERS.contains(&name);
            ensure!(
                !changes,
                "{}: '{key}' is {value}, which is not implemented for {}: set it to false, if the model has learned \
                 without it",
                self.place,
                self.class.name
            );
        }
        Ok(())
    }

    /// The file's, or the class's where the file has none: null turns off what the class has, as in transformers.
    pub fn value(&self, key: &str) -> &Value {
        self.given.get(key).unwrap_or(&self.class.defaults[key])
    }

    pub fn wrong<T>(&self, key: &str, expected: &str) -> Result<T> {
        bail!("{}: '{key}' is {}, expected {expected}", self.place, self.value(key))
    }

    pub fn switch(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            Value::Null => Ok(default && self.given.get(key).is_none()),
            Value::Bool(value) => Ok(*value),
            _ => self.wrong(key, "true or false"),
        }
    }

    pub fn size(&self, key: &str, square: bool) -> Result<Option<Size>> {
        let value = self.value(key);
        let place = || format!("{}: '{key}' is {value}", self.place);
        (!value.is_null()).then(|| Size::read(value, square).with_context(place)).transpose()
    }

    /// A size of which height and width are given.
    pub fn exact(&self, key: &str) -> Result<Option<(usize, usize)>> {
        match self.size(key, true)? {
            None => Ok(None),
            Some(Size::Exact { height, width }) => Ok(Some((height, width))),
            Some(_) => self.wrong(key, "a number, or an object with 'height' and 'width'"),
        }
    }

    /// A size of which the longer edge is given.
    pub fn longest(&self, key: &str) -> Result<usize> {
        match self.size(key, true)? {
            Some(Size::Longest(edge)) => Ok(edge),
            _ => self.wrong(key, "an object with 'longest_edge'"),
        }
    }

    /// The way to resize pictures, and the size that they get; none where they are as they are.
    pub fn resizing(&self) -> Result<Option<(Size, Filter)>> {
        if !self.switch("do_resize", true)? {
            return Ok(None);
        }
        let square = self.switch("default_to_square", true)?;
        let (is_split, filter) = (self.class.scheme == Scheme::Split, self.filter()?);
        Ok(match self.size("size", square)? {
            Some(Size::Between { longest, .. }) if is_split => {
                Some((Size::Longest(longest), filter))
            }
            Some(Size::Shortest(_) | Size::Within { .. }) if is_split => {
                self.wrong("size", "'longest_edge', or 'height' and 'width'")?
            }
            Some(Size::Longest(_)) if !is_split => {
                self.wrong("size", "another form: no 'longest_edge' alone for this processor")?
            }
            Some(size) => Some((size, filter)),
            None => self.wrong("size", "a size, or 'do_resize' that is false")?,
        })
    }

    pub fn filter(&self) -> Result<Filter> {
        match self.value("resample").as_u64().and_then(Filter::numbered) {
            Some(filter) => Ok(filter),
            None => self.wrong("resample", "0 to 5"),
        }
    }

    /// The factor of bytes.
    pub fn factor(&self) -> Result<f64> {
        match self.value("rescale_factor") {
            Value::Null if self.given.get("rescale_factor").is_none() => Ok(1. / 255.),
            value => match value.as_f64() {
                Some(factor) => Ok(factor),
                None => self.wrong("rescale_factor", "a number"),
            },
        }
    }

    /// A number for each channel; one stands for all.
    pub fn per_channel(&self, key: &str, channels: usize) -> Result<Vec<f64>> {
        let value = self.value(key);
        if let Some(number) = value.as_f64() {
            return Ok(vec![number; channels]);
        }
        let list = value.as_array().map(|list| list.iter().filter_map(Value::as_f64).collect());
        match list {
            Some(numbers) if Vec::len(&numbers) == channels => Ok(numbers),
            _ => self.wrong(key, &format!("{channels} numbers, one for each channel")),
        }
    }

    /// Refuses what cannot be, with the file's name in front.
    pub fn fault(&self, words: &str) -> anyhow::Error {
        anyhow::anyhow!("{}: {words}", self.place)
    }
}
