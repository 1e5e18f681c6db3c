//! A family of models of images and texts: a row of the table.

use serde_json::Value;

use super::connector::ConnectorConfig;
use super::tower::Taken;
use crate::error::Result;
use crate::models::decoder::DecoderConfig;
use crate::models::vision::ImageTowerConfig;

/// One family. What its connector needs is read by `connector`.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) model_type: &'static str,
    pub(super) names: Names,
    pub(super) vision: Part,
    pub(super) text: Part,
    /// The id of the image token where none is given.
    pub(super) image_token: i64,
    pub(super) connector:
        fn(&Value, &ImageTowerConfig, &DecoderConfig) -> Result<(Taken, ConnectorConfig)>,
    /// True if an image is seen as a whole and in tiles.
    pub(super) in_tiles: bool,
    /// True if the tokens of an image look at each other.
    pub(super) looks_both_ways: bool,
    /// True if images are of any size, cut into patches, and positions stand on three axes.
    pub(super) packs: bool,
    /// True if the language model's settings stand beside those of the whole where they have no key of their own.
    pub(super) is_flat: bool,
}

/// Names of the parts, below the base model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Names {
    pub(super) tower: &'static str,
    pub(super) connector: &'static str,
    pub(super) text: &'static str,
}

/// A part that is configured below a key of its own.
#[derive(Debug)]
pub(super) struct Part {
    /// The `model_type` where none is given.
    pub(super) model_type: &'static str,
    /// Fields where the whole key is missing.
    pub(super) fields: fn() -> Value,
}
