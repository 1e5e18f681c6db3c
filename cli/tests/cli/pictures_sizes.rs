//! Models that see pictures in tiles, or of any size, learn and answer as the others do.

use serde_json::{json, Value};

use crate::common::run_python;
use crate::pictures_ids::{models, picture};
use crate::pictures_train::{adapter, training};
use crate::program::{printed, report, text};

const FAMILIES: [&str; 2] = ["llava_next", "qwen3_vl"];

#[test]
fn pictures_of_many_sizes_are_learned_and_peft_answers_the_same() {
    for family in FAMILIES {
        let training = training(family).set(&["data.packing=false", "optimizer.lr=0.05"]);
        let simple = "recipe=layernorm-simple";
        training.run(&["out=kept", "epochs=2", simple]);
        training.run(&["out=each", "epochs=2", "data.features_mb=null", simple]);
        assert!(adapter(&training, "kept") == adapter(&training, "each"), "{family}");
        // Each alone with a tower that learns, and several that are not of one size beside one that does not.
        let loss = |out: &str, more: &[&str]| {
            let out_is = format!("out={out}");
            let all = [&out_is, "max_steps=1", "optimizer.lr=0", "data.eval=train.json"];
            training.run(&[&all[..], more].concat());
            training.series(out, "eval_loss").last().unwrap().1
        };
        let one = loss("one", &["batch_size=1"]);
        let three = loss("three", &["batch_size=3", simple]);
        assert!((one - three).abs() < 1e-5, "{family}: {one} {three}");

        let (base, tuned) = (models().join(family), training.path("kept/adapter"));
        let images = [picture("wide.png"), picture("tall.png")];
        let part = |path: &String| json!({"type": "image", "path": path});
        let parts = json!([part(&images[0]), part(&images[1]), {"type": "text", "text": "What?"}]);
        let rows = json!([{"open": true, "messages": [{"role": "user", "content": parts}]}]);
        let arguments = ["answers", text(&base), text(&tuned), "8", &rows.to_string()];
        let theirs: Vec<String> =
            serde_json::from_str(&run_python("picture_chats.py", &arguments)).unwrap();
        let named = format!("x={}", tuned.display());
        let ours = printed(&[
            "generate",
            "--cpu",
            "--model",
            text(&base),
            "--max-new-tokens",
            "8",
            "--prompt",
            "What?",
            "--chat",
            "--image",
            &images[0],
            "--image",
            &images[1],
            "--adapter",
            &named,
        ]);
        assert_eq!(ours, format!("{}\n", theirs[0]), "{family}");
    }
}

#[test]
fn a_model_of_pictures_of_any_size_is_verified_and_refuses_packed_rows_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let (model, file) = (models().join("qwen3_vl"), dir.path().join("x.st"));
    let (wide, grey) = (picture("wide.png"), picture("grey.png"));
    run_python("picture_chats.py", &["reference", text(&model), text(&file), &wide, &grey]);
    let verify = ["verify", "--json", "--model", text(&model), "--reference", text(&file)];
    let seen: Value = report(&[&verify[..], &["--image", &wide, "--image", &grey]].concat());
    assert!(seen["ok"] == true && seen["pixels_apart"].as_f64().unwrap() < 1e-5, "{seen}");
    let training = training("qwen3_vl");
    let error = training.refusal(&["data.packing=true"]);
    assert!(error.contains("a qwen3_vl takes no several documents in a row"), "{error}");
    assert!(error.contains("set data.packing=false"), "{error}");
    // Rows are packed by themselves only where they can be.
    let printed = self::training("qwen2_5_vl").run(&["max_steps=1"]);
    assert!(printed.contains("one document a row: the model takes no several"), "{printed}");
}
