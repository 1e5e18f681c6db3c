//! Pictures: files of them, and the pixels that a model sees.
//!
//! [`picture`] reads a file as PIL does, and [`Processor`] does what the image processor of transformers does that
//! `preprocessor_config.json` names. The judge is transformers' PIL backend ("slow" processors): from the same bytes,
//! pixel values are equal bit for bit, in every way of resizing. The torchvision backend of the same classes ("Fast")
//! rounds between the steps in its own way: it is up to 2 levels of 255 away from PIL's, and so from these values.
//! Files without loss give the bytes that PIL gives. Decoders of JPEG and of WebP with loss differ by a few levels.

pub mod class;
pub mod head;
pub mod options;
pub mod picture;
pub mod processor;
pub mod raster;
pub mod resize;
pub mod size;
pub mod tiles;

pub use processor::{Pixels, Processor};
