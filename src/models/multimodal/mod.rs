//! Models of images and texts: a tower for images, a connector, and a language model that reads what both give.

mod config;
mod connector;
mod families;
mod family;
mod generate;
mod image_tokens;
mod loss;
mod mergers;
mod model;
mod pixel_shuffle;
mod pooled_projector;
mod positions;
mod projector;
mod three_axes;
mod tiles;
mod tower;

pub(super) use config::refuse_original;
pub use config::ImageTextToTextConfig;
pub use model::ImageTextToText;
