//! The image processors of transformers that are implemented, with what holds where a file is silent.

use anyhow::{Context, Result};
use serde_json::Value;

/// The steps that one processor has and others have not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Resized, cut, and `pad_size` around it.
    Plain,
    /// `do_pad` makes a square of the picture first.
    Squared,
    /// Resized, and nothing else.
    Resized,
    /// Idefics3's: tiles, and a small copy of the whole.
    Split,
    /// LLaVA-NeXT's: the whole, and tiles of the grid that suits best.
    Pinpoints,
    /// Qwen's: patches of a picture of any size.
    Patches,
}

/// A processor's class.
#[derive(Debug)]
pub struct Class {
    /// As it was given.
    pub name: String,
    pub scheme: Scheme,
    /// The values of `preprocessor_config.json` where it has none.
    pub defaults: Value,
}

/// The classes, the model types that have them where nothing names a class, the scheme, and the defaults.
#[rustfmt::skip]
const CLASSES: &[(&str, &str, Scheme, &str)] = &[
    ("CLIPImageProcessor BitImageProcessor", "clip dinov2", Scheme::Plain, CLIP),
    ("LlavaImageProcessor", "llava", Scheme::Squared, CLIP),
    ("LlavaNextImageProcessor", "llava_next", Scheme::Pinpoints, NEXT),
    ("Qwen2VLImageProcessor", "qwen2_5_vl qwen3_vl", Scheme::Patches, r#"{
        "size": {"shortest_edge": 3136, "longest_edge": 1003520}, "resample": 3, "default_to_square": false,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2
    }"#),
    ("SiglipImageProcessor", "siglip paligemma", Scheme::Plain, r#"{
        "size": {"height": 224, "width": 224}, "resample": 3, "image_mean": 0.5, "image_std": 0.5, "default_to_square": false
    }"#),
    ("ViTImageProcessor", "vit", Scheme::Plain, r#"{
        "size": {"height": 224, "width": 224}, "resample": 2, "image_mean": 0.5, "image_std": 0.5, "default_to_square": true
    }"#),
    ("Gemma3ImageProcessor", "gemma3", Scheme::Resized, r#"{
        "size": {"height": 224, "width": 224}, "resample": 2, "image_mean": 0.5, "image_std": 0.5, "default_to_square": true
    }"#),
    ("Idefics3ImageProcessor SmolVLMImageProcessor", "idefics3 smolvlm", Scheme::Split, r#"{
        "size": {"longest_edge": 1456}, "resample": 1, "image_mean": 0.5, "image_std": 0.5, "default_to_square": true,
        "max_image_size": {"longest_edge": 364}, "do_image_splitting": true, "do_pad": true
    }"#),
];

const CLIP: &str = r#"{
    "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": true, "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "default_to_square": false
}"#;

const NEXT: &str = r#"{
    "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": true, "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "default_to_square": false, "do_pad": true,
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
}"#;

impl Class {
    /// The class of a processor's settings: `image_processor_type`, or what older files have in its place.
    ///
    /// # Errors
    /// For a class that is not implemented, by its name.
    pub fn of(given: &Value, model_type: &str) -> Result<Self> {
        let named = ["image_processor_type", "feature_extractor_type"];
        let named = named.iter().find_map(|key| given[key].as_str());
        let Some(name) = named else { return Self::of_model(model_type) };
        // The endings are other ways to compute the same, and the name of former versions.
        let base = name.strip_suffix("Fast").or(name.strip_suffix("Pil")).unwrap_or(name);
        let base = base.replace("FeatureExtractor", "ImageProcessor");
        let row = CLASSES.iter().find(|row| row.0.split(' ').any(|known| known == base));
        let names =
            CLASSES.iter().map(|row| row.0.replace(' ', ", ")).collect::<Vec<_>>().join(", ");
        let row = row.with_context(|| {
            format!("the image processor {name} is not implemented, expected one of {names}")
        })?;
        Self::new(name, row)
    }

    /// That of models of this type.
    pub fn of_model(model_type: &str) -> Result<Self> {
        let row = CLASSES.iter().find(|row| row.1.split(' ').any(|known| known == model_type));
        let row = row.with_context(|| {
            format!(
                "'image_processor_type' is missing, and none is known for the model_type '{model_type}': name the \
                 class in the file"
            )
        })?;
        Self::new(row.0.split(' ').next().unwrap_or_default(), row)
    }

    fn new(name: &str, row: &(&str, &str, Scheme, &str)) -> Result<Self> {
        let defaults = serde_json::from_str(row.3).context("the defaults of an image processor")?;
        Ok(Class { name: name.to_owned(), scheme: row.2, defaults })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_class_has_former_names_and_those_of_other_ways_to_compute_it() {
        let scheme = |given: Value| Class::of(&given, "vit").map(|class| class.scheme);
        for (name, expected) in [
            ("CLIPFeatureExtractor", Scheme::Plain),
            ("CLIPImageProcessorFast", Scheme::Plain),
            ("LlavaImageProcessorPil", Scheme::Squared),
            ("SmolVLMImageProcessorFast", Scheme::Split),
            ("Gemma3ImageProcessor", Scheme::Resized),
            ("LlavaNextImageProcessorFast", Scheme::Pinpoints),
            ("Qwen2VLImageProcessorPil", Scheme::Patches),
        ] {
            assert_eq!(scheme(json!({"image_processor_type": name})).unwrap(), expected, "{name}");
        }
        assert_eq!(
            scheme(json!({"feature_extractor_type": "LlavaFeatureExtractor"})).unwrap(),
            Scheme::Squared
        );
        assert_eq!(scheme(json!({})).unwrap(), Scheme::Plain);
        let error = scheme(json!({"image_processor_type": "LlavaOnevisionImageProcessor"}))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("LlavaOnevisionImageProcessor is not implemented, expected one of CLIP"),
            "{error}"
        );
        let error = Class::of(&json!({}), "swin").unwrap_err().to_string();
        assert!(error.contains("the model_type 'swin'"), "{error}");
        for row in CLASSES {
            Class::new(row.0, row).unwrap();
        }
    }
}
