//! Images in the formats that people have, as PIL reads them for transformers.

use crate::common::run_python;
use crate::program::Training;
use ln_tuning::natural_cmp;
use serde_json::Value;

#[test]
fn every_kind_and_size_of_picture_has_the_loss_that_it_has_in_transformers() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().to_str().unwrap();
    let theirs: Value = serde_json::from_str(&run_python("images.py", &[dir])).unwrap();
    let settings = [
        "batch_size=1",
        "optimizer.lr=0",
        "data.shuffle=false",
        "device=cpu",
        "workers=1",
        "threads=1",
    ];
    let ways = theirs.as_object().unwrap();
    assert_eq!(ways.len(), 6);
    for (way, theirs) in ways {
        // Decoders of JPEG round in their own ways.
        let (data, most, count) = match way.as_str() {
            "exact" => ("exact", 1e-4, 59),
            "lossy" => ("lossy", 2e-2, 12),
            _ => ("sizes", 1e-4, 7),
        };
        let model = scratch.path().join(format!("model-{way}"));
        let training = Training::new(&model).set(&settings);
        let printed = training.run(&[&format!("data.train={dir}/{data}")]);
        assert!(printed.contains("the model's own head: a, b"), "{printed}");
        let losses = training.series("out", "loss");
        let theirs = theirs.as_object().unwrap();
        let mut files: Vec<&String> = theirs.keys().collect();
        files.sort_by(|a, b| natural_cmp(a, b));
        assert_eq!((losses.len(), files.len()), (count, count), "{printed}");
        for ((_, ours), file) in losses.iter().zip(files) {
            let theirs = theirs[file].as_f64().unwrap();
            assert!((ours - theirs).abs() < most, "{way} {file}: {ours}, transformers {theirs}");
        }
    }
}

#[test]
fn files_that_are_no_pictures_are_named_and_a_class_without_any_stops_the_run() {
    let training =
        Training::new(&crate::classifier::model("vit")).set(&["data.train=images", "max_steps=1"]);
    let file = |name: &str, bytes: &[u8]| {
        let path = training.path("images").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    for class in ["a", "b"] {
        for i in 0..2 {
            let path = training.path("images").join(format!("{class}/{i}.bmp"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::new(8, 8).save(path).unwrap();
        }
    }
    file("a/x.avif", b"");
    file("b/notes.txt", b"notes");
    let printed = training.run(&[]);
    assert!(
        printed.contains("4 images of 'images'; left out: 1 .avif (a/x.avif), 1 .txt"),
        "{printed}"
    );
    file("c/x.heic", b"");
    let error = training.refusal(&["out=second"]);
    assert!(error.contains("the class 'c' has no picture"), "{error}");
    // Skipped, it would take its class along.
    file("c/x.png", b"no picture");
    let error = training.refusal(&["out=second", "data.bad_lines=skip"]);
    assert!(error.contains("no picture of the class 'c' can be read"), "{error}");
    file("c/y.png", &std::fs::read(training.path("images/a/0.bmp")).unwrap());
    // Known by the whole file, before the run.
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(8, 8).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let png = png.into_inner();
    file("c/z.png", &png[..png.len() * 6 / 10]);
    let printed = training.run(&["out=second", "data.bad_lines=skip"]);
    assert!(printed.contains("5 images of 'images'; 2 bad ones skipped; left out"), "{printed}");
}
