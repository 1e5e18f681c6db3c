//! Pixels are those of transformers' image processors, and pictures are read as PIL reads them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ln_tuning_cli::pictures::{picture, Processor};
use serde_json::{json, Value};
use tch::{Kind, Tensor};

use crate::common::{run_python, shared};

/// Pictures of many kinds in `exact` and `lossy`, processors, and what transformers makes of the pictures.
struct Made {
    dir: PathBuf,
    /// By "processor/picture", and by "rgb/exact/picture".
    pixels: BTreeMap<String, Tensor>,
    /// By "processor/picture", rows and columns of tiles, or the error.
    tiles: Value,
}

/// Made once for all tests.
fn made() -> Made {
    static MADE: OnceLock<(PathBuf, String)> = OnceLock::new();
    let (dir, tiles) = MADE.get_or_init(|| {
        let dir = shared("pictures");
        let _ = std::fs::remove_dir_all(&dir);
        let tiles = run_python("pictures.py", &[dir.to_str().unwrap()]);
        (dir, tiles)
    });
    let pixels = Tensor::read_safetensors(dir.join("pixels.safetensors")).unwrap();
    let pixels = pixels.into_iter().collect();
    Made { dir: dir.clone(), pixels, tiles: serde_json::from_str(tiles).unwrap() }
}

fn pictures(folder: &Path) -> Vec<(String, PathBuf)> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut files: Vec<_> = files.map(|path| (name(&path), path)).collect();
    files.sort();
    files
}

/// The file's bytes, `[3, height, width]`.
fn bytes(path: &Path) -> Tensor {
    let image = picture::read(path).unwrap();
    let (width, height) = image.dimensions();
    let bytes = Tensor::from_slice(image.as_raw());
    bytes.view([i64::from(height), i64::from(width), 3]).permute([2, 0, 1])
}

#[test]
fn pixels_are_bit_for_bit_those_of_every_image_processor_of_transformers() {
    let Made { dir, pixels, tiles } = made();
    let (mut compared, mut refused) = (0, 0);
    for (name, processor) in pictures(&dir.join("processors")) {
        let channels = if name == "grey" { 1 } else { 3 };
        let config = json!({"model_type": "vit", "num_channels": channels});
        let processor = Processor::of(&processor, &config).unwrap();
        for (picture, path) in pictures(&dir.join("exact")) {
            let key = format!("{name}/{picture}");
            let made = processor.apply(&picture::read(&path).unwrap());
            let Some(theirs) = pixels.get(&key) else {
                assert!(made.is_err(), "{key}: transformers says {}", tiles[&key]);
                refused += 1;
                continue;
            };
            let made = made.unwrap();
            assert_eq!(made.values.size(), theirs.size(), "{key}");
            let most = (&made.values - theirs).abs().max().double_value(&[]);
            assert!(made.values.equal(theirs), "{key}: {most}");
            if let Value::Array(theirs) = &tiles[&key] {
                assert_eq!([json!(made.rows), json!(made.columns)], theirs[..], "{key}");
            }
            compared += 1;
        }
    }
    assert_eq!((compared, refused), (27 * 35 - 3, 3));
}

#[test]
fn pictures_are_bit_for_bit_those_that_pil_reads_with_loss_or_without() {
    let Made { dir, pixels, .. } = made();
    let mut count = 0;
    for folder in ["exact", "lossy"] {
        for (name, path) in pictures(&dir.join(folder)) {
            let theirs = &pixels[&format!("rgb/{folder}/{name}")];
            let ours = bytes(&path);
            assert_eq!(ours.size(), theirs.size(), "{name}");
            let far = (ours.to_kind(Kind::Float) - theirs.to_kind(Kind::Float)).abs().max();
            assert!(ours.equal(theirs), "{folder}/{name}: {}", far.double_value(&[]));
            count += 1;
        }
    }
    assert_eq!(count, 27 + 24);
}
