//! Models of images and texts: a tower for images, a connector, and a language model that reads what both give.

mod config;
mod connector;
mod families;
mod family;
mod generate;
mod loss;
mod model;
mod pixel_shuffle;
mod pooled_projector;
mod projector;
mod tiles;
mod tower;

pub(super) use config::refuse_original;
pub use config::ImageTextToTextConfig;
pub use model::ImageTextToText;
