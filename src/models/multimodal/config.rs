//! The configuration of a model of images and texts, for all families in one form.

use serde_json::Value;

use super::connector::ConnectorConfig;
use super::families::FAMILIES;
use super::family::{Family, Names, Part};
use super::three_axes;
use super::tiles::TilesConfig;
use super::tower::Taken;
use crate::error::{refuse, Result};
use crate::models::config::{declared, optional_integer, Declared, ModelConfig};
use crate::models::decoder::DecoderConfig;
use crate::models::vision::ImageTowerConfig;
use crate::pretrained::{is_tied, Head};

/// The shape and the options of a model of images and texts, read from a `config.json` of transformers.
///
/// Families: `llava` (1.5) and `llava_next` (1.6), whose language model is of any family of [`DecoderConfig`], and
/// whose tower is that of a CLIP or of a SigLIP; `gemma3` (4b and larger); `idefics3` and `smolvlm`;
/// `qwen2_5_vl` and `qwen3_vl`, whose images are of any size.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageTextToTextConfig {
    declared: Declared,
    pub(super) names: Names,
    pub(super) text: DecoderConfig,
    pub(super) tower: ImageTowerConfig,
    pub(super) taken: Taken,
    pub(super) connector: ConnectorConfig,
    pub(super) tiles: Option<TilesConfig>,
    image_token_id: i64,
    /// True if the tokens of an image look at each other.
    pub(super) looks_both_ways: bool,
}

impl ImageTextToTextConfig {
    /// The language model.
    pub fn text(&self) -> &DecoderConfig {
        &self.text
    }

    /// The id of the token that stands for a part of an image.
    #[doc(alias = "image_token_index")]
    pub fn image_token_id(&self) -> i64 {
        self.image_token_id
    }

    /// The number of image tokens that each image takes in the ids; each tile, where images are seen in tiles; 0 where
    /// images are of any size, and take one for each square of patches of their `image_grid_thw`.
    #[doc(alias = "image_seq_length")]
    pub fn tokens_per_image(&self) -> i64 {
        self.connector.tokens(self.features().0)
    }

    /// The number of image tokens that an image of this size takes in the ids:
    /// [`tokens_per_image`](Self::tokens_per_image), but where images are seen in tiles, or are of any size.
    ///
    /// # Errors
    /// `InvalidArgument` for an image without pixels, or one whose patches fill no squares.
    pub fn image_tokens(&self, height: i64, width: i64) -> Result<i64> {
        match (&self.tiles, self.tower.packed()) {
            (Some(tiles), _) => Ok(tiles.count([height, width])?.1),
            (None, Some(packed)) => packed.tokens([height, width]),
            (None, None) => Ok(self.tokens_per_image()),
        }
    }

    /// The number of hidden states of an image that the connector takes, and their width.
    pub(super) fn features(&self) -> (i64, i64) {
        self.taken.shape(&self.tower)
    }
}

const HEADS: &[Head] = &[Head::None, Head::LanguageModel];

/// The keys of the parts.
const VISION: &str = "vision_config";
const TEXT: &str = "text_config";

/// The key of the image token's id, and its former one.
const IMAGE_TOKEN: [&str; 2] = ["image_token_id", "image_token_index"];

impl ModelConfig for ImageTextToTextConfig {
    fn model_types() -> Vec<&'static str> {
        FAMILIES.iter().map(|family| family.model_type).collect()
    }

    fn from_value(config: &Value) -> Result<Self> {
        refuse_original(config)?;
        let declared = Declared::read(config, &Self::model_types(), HEADS, Head::LanguageModel)?;
        let is_read = |model_type: &str| model_type == declared.model_type();
        let family = FAMILIES.iter().find(|family| is_read(family.model_type));
        let family = family.unwrap_or(&FAMILIES[0]);
        let (vision, text) = (part(config, VISION, &family.vision)?, text_part(config, family)?);
        let tower = if family.packs {
            ImageTowerConfig::read_packed(&vision)?
        } else {
            ImageTowerConfig::read(&vision)?
        };
        let text =
            if family.packs { three_axes::read(&text)? } else { DecoderConfig::of_part(&text)? };
        let text = text.within(declared.head(), is_tied(config))?.with_generation(config)?;
        let (taken, connector) = (family.connector)(config, &tower, &text)?;
        let given = |key| optional_integer(config, key);
        let image_token_id = given(IMAGE_TOKEN[0])?.or(given(IMAGE_TOKEN[1])?);
        let image_token_id = image_token_id.unwrap_or(family.image_token);
        let tiles =
            family.in_tiles.then(|| TilesConfig::read(config, &tower, &taken)).transpose()?;
        let Family { names, looks_both_ways, .. } = *family;
        Ok(Self {
            declared,
            names,
            text,
            tower,
            taken,
            connector,
            tiles,
            image_token_id,
            looks_both_ways,
        })
    }

    declared!();

    fn with_head(mut self, head: Head) -> Result<Self> {
        self.declared.set_head(head)?;
        self.text = self.text.with_head(head)?;
        Ok(self)
    }

    fn with_generation(mut self, generation: &Value) -> Result<Self> {
        self.text = self.text.with_generation(generation)?;
        Ok(self)
    }
}

/// The configuration of the language model.
fn text_part(config: &Value, family: &Family) -> Result<Value> {
    let mut fields = part(config, TEXT, &family.text)?;
    if let (true, None | Some(Value::Null), Some(all)) =
        (family.is_flat, config.get(TEXT), config.as_object())
    {
        let own =
            all.iter().filter(|(key, _)| !["model_type", VISION, TEXT].contains(&key.as_str()));
        fields.as_object_mut().into_iter().for_each(|fields| {
            fields.extend(own.clone().map(|(key, value)| (key.clone(), value.clone())));
            fields.remove("architectures");
        });
    }
    Ok(fields)
}

/// The configuration of a part, which has another head than the whole.
fn part(config: &Value, key: &str, part: &Part) -> Result<Value> {
    let mut fields = match config.get(key) {
        None | Some(Value::Null) => (part.fields)(),
        Some(fields @ Value::Object(_)) => fields.clone(),
        Some(_) => refuse!(InvalidConfig, "'{key}' is not a mapping"),
    };
    if let Some(fields) = fields.as_object_mut() {
        fields.remove("architectures");
        fields.entry("model_type").or_insert_with(|| part.model_type.into());
    }
    Ok(fields)
}

/// Refuses files of the program that LLaVA was first trained with, which keep the tower's weights elsewhere.
pub(in crate::models) fn refuse_original(config: &Value) -> Result<()> {
    let has = |key: &str| config.get(key).is_some_and(|value| !value.is_null());
    if has("mm_vision_tower") && !config.get("vision_config").is_some_and(Value::is_object) {
        refuse!(
            Unsupported,
            "the configuration is that of the original LLaVA ('mm_vision_tower' is set), which says nothing of the tower \
             and has other names: take a checkpoint of transformers (llava-hf/llava-1.5-7b-hf), or make one with its \
             convert_llava_weights_to_hf.py"
        );
    }
    Ok(())
}
