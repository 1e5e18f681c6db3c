//! Classifiers of images beside transformers and PEFT.

use serde_json::{json, Value};

use crate::common::run_python;
use crate::program::{printed, Training};

/// The most cited use of LayerNorm tuning: CLIP's tower for images with a head, to tell real pictures from others.
#[test]
fn an_adapter_on_a_tower_for_images_has_the_same_loss_in_peft_as_here() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().to_str().unwrap();
    run_python("image_classifiers.py", &["make", dir]);
    let data = format!("{dir}/pictures");
    let names = ["clip", "siglip", "dinov2", "vit"];
    let training = Training::new(&scratch.path().join("clip")).set(&[
        &format!("data.train={data}"),
        &format!("data.eval={data}"),
        "task=image-classification",
        "optimizer.lr=0.02",
        "batch_size=8",
        "max_steps=12",
        "eval_interval=12",
        "device=cpu",
        "workers=1",
        "threads=1",
    ]);
    for name in names {
        let printed = training.run(&[&format!("model={dir}/{name}"), &format!("out={name}")]);
        assert!(printed.contains("2 labels, a new head: seven, three"), "{printed}");
    }
    let adapters = training.path("");
    let theirs = run_python("image_classifiers.py", &["losses", dir, adapters.to_str().unwrap()]);
    let theirs: Value = serde_json::from_str(&theirs).unwrap();
    for name in names {
        let ours = training.series(name, "eval_loss").last().unwrap().1;
        let loss = theirs[name]["loss"].as_f64().unwrap();
        assert!((ours - loss).abs() < 1e-4, "{name}: {ours}, PEFT {loss}");
        assert!(ours < 2_f64.ln() - 0.05, "{name} learned nothing: {ours}");
        let trained = theirs[name]["trained"].as_array().unwrap();
        let has = |part: &str| trained.iter().any(|name| name.as_str().unwrap().contains(part));
        assert!(has("modules_to_save.default.weight") && !has("text_model"), "{trained:?}");
    }
    // Both norms of each of two layers, with their biases, the norm in front of them, and the head.
    assert_eq!(theirs["clip"]["trained"].as_array().unwrap().len(), 2 * 2 * 2 + 2 + 2);
    // Merged, it is a classifier of transformers by itself.
    let (base, adapter) = (format!("{dir}/clip"), training.path("clip/adapter"));
    let (adapter, merged) = (adapter.to_str().unwrap(), training.path("merged"));
    let merged = merged.to_str().unwrap();
    printed(&["merge", "--base", &base, "--adapter", adapter, "--out", merged]);
    let config = std::fs::read_to_string(training.path("merged/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["architectures"], json!(["CLIPForImageClassification"]));
    let settings = [&format!("model={merged}"), "out=again", "max_steps=1", "optimizer.lr=0"];
    let printed = training.run(&[&settings[..], &["eval_interval=1"]].concat());
    assert!(printed.contains("the model's own head"), "{printed}");
    let (before, after) =
        (training.series("clip", "eval_loss"), training.series("again", "eval_loss"));
    assert!((before[0].1 - after[0].1).abs() < 1e-5, "{before:?}, merged {after:?}");
}

#[test]
fn a_table_with_paths_of_pictures_trains_as_their_folders_do() {
    let training = crate::classifier::training("vit").set(&["max_steps=4", "data.shuffle=false"]);
    crate::classifier::images(&training);
    let mut table = "file_name,label,artist\n".to_owned();
    for class in ["blue", "red"] {
        (0..12).for_each(|i| table += &format!("{class}/{i}.png,{class},nobody\n"));
    }
    training.write("images/metadata.csv", &table);
    let csv = ["data.train=images/metadata.csv", "data.image=file_name"];
    let printed = training.run(&[&csv[..], &["out=csv", "task=image-classification"]].concat());
    assert!(printed.contains("24 images of 'images/metadata.csv'"), "{printed}");
    assert!(printed.contains("artist"), "a key that nobody reads: {printed}");
    std::fs::remove_file(training.path("images/metadata.csv")).unwrap();
    training.run(&["out=folders", "data.train=images"]);
    assert_eq!(training.series("csv", "loss"), training.series("folders", "loss"));
    training.write("images/metadata.csv", &table);
    std::fs::write(training.path("images/red/3.png"), "no picture").unwrap();
    std::fs::remove_file(training.path("images/blue/5.png")).unwrap();
    let error = training.refusal(&[&csv[..], &["out=bad"]].concat());
    for part in
        ["2 bad lines", "metadata.csv:7:", "blue/5.png", "metadata.csv:17:", "this is not an image"]
    {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
    let error = training.refusal(&["out=bad", csv[0], "data.image=path"]);
    assert!(error.contains("no column 'path', only file_name, label, artist"), "{error}");
    let error = training.refusal(&["out=bad", csv[0], csv[1], "data.pair=artist"]);
    assert!(error.contains("'data.image' and 'data.pair' are both set"), "{error}");
}
