//! Models of images: ViT, DINOv2, and both towers of CLIP.

mod block;
mod clip;
mod clip_config;
mod clip_tower;
mod dinov2;
mod patches;
mod vit;

pub use clip::Clip;
pub use clip_config::{ClipConfig, ClipTextConfig, ClipVisionConfig};
pub use clip_tower::{ClipText, ClipVision};
pub use dinov2::{Dinov2, Dinov2Config};
pub use vit::{ViTConfig, ViTForImageClassification};
