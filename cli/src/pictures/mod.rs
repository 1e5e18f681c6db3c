//! Pictures: files of them, and the pixels that a model sees.
//!
//! [`picture`] reads a file as PIL does, and [`Processor`] does what the image processor of transformers does that
//! `preprocessor_config.json` names. The judge is transformers' PIL backend, with Pillow 13: from the same bytes, pixel
//! values are equal bit for bit, in every way of resizing. The torchvision backend of the same classes ("Fast")
//! resizes with torch's kernels for bytes, of which one value in a hundred is 1 or 2 levels of 255 away from PIL's; it
//! also puts an odd pixel of padding on the other side. That is the distance from these values, too.
//!
//! Files are read as `transformers.image_utils.load_image` does it: turned as EXIF says, then RGB without transparency.
//! The bytes are those of PIL: JPEG, in any form and number of channels, is decoded by the library that PIL uses. Two
//! exceptions are known. JPEG inside of TIFF is 1 level away, and around the first frame of a GIF that does not fill
//! the screen there is black, where PIL has the first colour of the palette.

pub mod class;
pub mod head;
mod jpeg;
pub mod options;
mod patches;
pub mod picture;
mod pinpoints;
mod png;
pub mod processor;
pub mod raster;
pub mod resize;
pub mod size;
pub mod tiles;

pub use processor::{Pixels, Processor};
