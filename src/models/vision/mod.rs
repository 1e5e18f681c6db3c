//! Models of images: ViT, DINOv2, and both towers of CLIP and of SigLIP.

mod block;
mod clip;
mod clip_config;
mod clip_tower;
mod dinov2;
mod image_tower;
mod packed;
mod packed_config;
mod pair;
mod patch_mask;
mod patches;
mod pooling;
mod siglip;
mod siglip_config;
mod siglip_tower;
mod text_embeddings;
mod tower_classifier;
mod tower_config;
mod vit;

pub use clip::Clip;
pub use clip_config::{ClipConfig, ClipTextConfig, ClipVisionConfig};
pub use clip_tower::{ClipText, ClipVision};
pub use dinov2::{Dinov2, Dinov2Config};
pub(in crate::models) use image_tower::{ImageTower, ImageTowerConfig};
pub(in crate::models) use packed::GridThw;
pub(in crate::models) use packed_config::PackedVisionConfig;
pub use siglip::Siglip;
pub use siglip_config::{SiglipConfig, SiglipTextConfig, SiglipVisionConfig};
pub use siglip_tower::{SiglipText, SiglipVision};
pub use tower_classifier::{TowerClassifier, TowerClassifierConfig};
pub use vit::{ViTConfig, ViTForImageClassification};
