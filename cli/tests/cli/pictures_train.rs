//! Models of images and texts learn from files of pictures, and answer about them.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::common::run_python;
use crate::pictures_ids::{copied, models, picture};
use crate::program::{output, printed, report, text, texts, Training};

/// Rows in the words of LLaVA and of OpenAI, with and without pictures; the files are below `pictures/`.
fn rows() -> Vec<Value> {
    let names = ["wide.png", "tall.png", "grey.png", "alpha.png", "square.png", "small.bmp"];
    let said = ["a cat", "a dog", "the quick brown fox", "noise"];
    let mut rows = Vec::new();
    for (place, name) in names.iter().cycle().take(18).enumerate() {
        let said = said[place % said.len()];
        rows.push(match place % 3 {
            0 => json!({"image": name, "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": said}]}),
            1 => json!({"conversations": [
                {"from": "human", "value": "Hello"}, {"from": "gpt", "value": said}]}),
            _ => json!({"images": [name, names[place % 4]], "conversations": [
                {"from": "human", "value": "<image><image>Which?"}, {"from": "gpt", "value": said}]}),
        });
    }
    rows
}

pub fn training(family: &str) -> Training {
    let training = Training::new(&models().join(family));
    training.write("train.json", &Value::from(rows()).to_string());
    let images = format!("data.images={}", models().join("pictures").display());
    training.set(&[
        "data.train=train.json",
        &images,
        "batch_size=3",
        "device=cpu",
        "threads=1",
        "workers=2",
        "deterministic=true",
    ])
}

pub fn adapter(training: &Training, out: &str) -> Vec<u8> {
    std::fs::read(training.path(out).join("adapter/adapter_model.safetensors")).unwrap()
}

#[test]
fn what_a_frozen_tower_saw_is_kept_and_packed_rows_have_the_loss_of_single_ones() {
    let training =
        training("llava").set(&["recipe=layernorm-simple", "epochs=3", "optimizer.lr=0.05"]);
    let printed = training.run(&["out=kept", "data.packing=false", "data.eval=train.json"]);
    assert!(printed.contains("18 documents") && printed.contains("18 pictures"), "{printed}");
    training.run(&[
        "out=each",
        "data.packing=false",
        "data.features_mb=null",
        "data.eval=train.json",
    ]);
    assert!(adapter(&training, "kept") == adapter(&training, "each"));
    let losses = training.series("kept", "loss");
    assert_eq!(losses, training.series("each", "loss"));
    assert!(losses.last().unwrap().1 < losses[0].1, "{losses:?}");
    let loss = |out: &str, packing: &str| {
        let out_is = format!("out={out}");
        training.run(&[&out_is, packing, "optimizer.lr=0", "epochs=1", "data.eval=train.json"]);
        training.series(out, "eval_loss").last().unwrap().1
    };
    let (packed, single) =
        (loss("packed", "data.packing=true"), loss("single", "data.packing=false"));
    assert!((packed - single).abs() < 1e-5, "{packed} {single}");
}

#[test]
fn two_stages_that_are_killed_end_in_one_adapter_with_which_peft_answers_the_same() {
    let training = training("llava");
    let stages = json!([
        {"recipe": "connector", "optimizer": {"lr": 0.01}, "max_steps": 6},
        {"recipe": "layernorm-simple", "optimizer": {"lr": 0.2}, "max_steps": 12},
    ]);
    let settings =
        |out: &str| json!({"out": out, "stages": stages, "save_interval": 1}).to_string();
    training.write("settings.yaml", &settings("whole"));
    let printed_whole = training.run(&[]);
    assert!(printed_whole.contains("stage 2 of 2"), "{printed_whole}");
    training.write("settings.yaml", &settings("out"));
    for (stage, steps) in [(1, 2), (2, 3)] {
        let mut child = training.command(&[]).spawn().unwrap();
        let lines = || {
            let path = training.path(&format!("out/stage-{stage}/metrics.jsonl"));
            std::fs::read_to_string(path).unwrap_or_default().lines().count()
        };
        let begun = Instant::now();
        while lines() < steps && child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(120));
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
    training.run(&[]);
    assert!(adapter(&training, "out") == adapter(&training, "whole"));
    let error = training.refusal(&["stages=[{model: x}]"]);
    assert!(error.contains("in stage 1: 'model' is of the whole run"), "{error}");

    let (llava, tuned) = (models().join("llava"), training.path("out/adapter"));
    let row = |texts: &str, images: &[&str]| {
        let images: Vec<String> = images.iter().map(|name| picture(name)).collect();
        json!({"text": texts, "images": images})
    };
    let parts =
        json!([{"type": "image", "path": picture("tall.png")}, {"type": "text", "text": "What?"}]);
    let rows = json!([
        row("<image>\na cat", &["wide.png"]),
        row("of <image> and <image>", &["grey.png", "small.bmp"]),
        row("a dog", &[]),
        {"open": true, "messages": [{"role": "user", "content": parts}]},
    ]);
    let theirs = |adapter: &str| -> Vec<String> {
        let printed = run_python(
            "picture_chats.py",
            &["answers", text(&llava), adapter, "8", &rows.to_string()],
        );
        serde_json::from_str(&printed).unwrap()
    };
    let (base, theirs) = (theirs(""), theirs(text(&tuned)));
    assert_ne!(base, theirs);
    let images = |names: &[&str]| -> Vec<String> {
        names.iter().flat_map(|name| ["--image".into(), picture(name)]).collect()
    };
    let named = format!("x={}", tuned.display());
    for (at, (prompt, names, more)) in [
        ("a cat", &["wide.png"][..], None),
        ("of <image> and <image>", &["grey.png", "small.bmp"], None),
        ("a dog", &[], None),
        ("What?", &["tall.png"], Some("--chat")),
    ]
    .into_iter()
    .enumerate()
    {
        let images = images(names);
        let mut arguments =
            vec!["generate", "--cpu", "--model", text(&llava), "--max-new-tokens", "8"];
        arguments.extend(["--prompt", prompt]);
        arguments.extend(images.iter().map(String::as_str).chain(more));
        assert_eq!(printed(&arguments), format!("{}\n", base[at]), "{prompt}");
        arguments.extend(["--adapter", &named]);
        assert_eq!(printed(&arguments), format!("{}\n", theirs[at]), "{prompt}");
    }
}

/// The script that `verify --script` prints, with pictures, for each family.
#[test]
fn models_that_see_are_verified_on_pictures_from_the_pixels_on() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("reference.py");
    std::fs::write(&script, printed(&["verify", "--script"])).unwrap();
    let (wide, grey, file) = (picture("wide.png"), picture("grey.png"), dir.path().join("x.st"));
    for family in ["llava", "llava_next", "gemma3", "idefics3"] {
        let model = models().join(family);
        let pictures = ["--image", &wide, "--image", &grey];
        run_python(text(&script), &[&[text(&model), text(&file)], &pictures[..]].concat());
        let verify = ["verify", "--json", "--model", text(&model), "--reference", text(&file)];
        let seen = report(&[&verify[..], &pictures].concat());
        assert!(seen["ok"] == true && seen["pixels_apart"].as_f64().unwrap() < 1e-5, "{seen}");
        let (out, _) =
            texts(&output(&[&verify[..], &["--image", &grey, "--image", &wide]].concat()));
        // Idefics3 makes as many tiles of neither.
        let turned: Value = serde_json::from_str(&out).unwrap_or_default();
        assert!(turned["ok"] != true, "{family}: {turned}");
    }
}

#[test]
fn texts_beside_pictures_may_be_the_longest_rows_and_are_left_out_where_only_what_sees_trains() {
    let said = |asked: &str| json!({"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "a"}]});
    let texts = [said(&"long ".repeat(20)), said("a")];
    let rows = [texts.to_vec(), rows()[..1].to_vec()].concat();
    let common = ["max_steps=3", "batch_size=1", "data.packing=false"];
    let training = training("llava").set(&common);
    training.write("train.json", &Value::from(rows).to_string());
    training.write("texts.json", &Value::from(texts.to_vec()).to_string());
    training.run(&["out=all"]);
    let printed = training.run(&["recipe=connector"]);
    assert!(printed.contains("; 2 pieces without a picture are left out"), "{printed}");
    let error = training.refusal(&["out=x", "recipe=connector", "data.train=texts.json"]);
    assert!(
        error.contains("no row has a picture") && error.contains("layernorm-simple"),
        "{error}"
    );
    let error = training.refusal(&["out=x", "data.train=texts.json"]);
    let (_, cure) = error.rsplit_once("No row has a picture. ").unwrap();
    let (_, pattern) = cure.trim_end().rsplit_once("adapter.exclude_modules=").unwrap();
    let cure = format!("adapter.exclude_modules={pattern}");
    for recipe in ["recipe=null", "recipe=layernorm"] {
        training.run(&["out=x", "resume=never", "data.train=texts.json", recipe, &cure]);
        std::fs::remove_dir_all(training.path("x")).unwrap();
    }
}

#[test]
fn a_tower_that_drops_or_changes_sees_each_picture_again() {
    let dir = copied("llava");
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["vision_config"]["attention_dropout"] = json!(0.1);
    std::fs::write(&path, config.to_string()).unwrap();
    let model = format!("model={}", dir.path().display());
    let training = training("llava").set(&["max_steps=4", "optimizer.lr=0.2"]);
    let dropped = ["recipe=connector", "eval_interval=1", "data.eval=train.json", &model];
    for features in ["1000", "null"] {
        let features = format!("data.features_mb={features}");
        let out = if features.ends_with("null") { "out=again" } else { "out=kept" };
        training.run(&[&dropped[..], &[&features, out]].concat());
    }
    assert!(adapter(&training, "kept") == adapter(&training, "again"));

    training.run(&["norms=all"]);
    let (tuned, base) = (training.path("out/adapter"), models().join("llava"));
    let (data, images) = (training.path("train.json"), models().join("pictures"));
    let images = format!("data.images={}", images.display());
    let scaled = |features: &str| {
        let inspect = ["inspect", text(&tuned), "--base", text(&base), "--data", text(&data)];
        let set = ["--json", "--set", &images, "--set", features, "--set", "device=cpu"];
        report(&[&inspect[..], &set].concat())["shift"].clone()
    };
    let losses = scaled("data.features_mb=1000");
    assert!(losses["rows"].as_array().is_some_and(|rows| rows.len() == 7), "{losses}");
    assert_eq!(losses, scaled("data.features_mb=null"));
}

#[test]
fn what_is_wrong_with_a_later_stage_is_found_before_the_first_one_trains() {
    let training = training("llava");
    let bad = json!([{"image": "absent.png", "conversations": rows()[0]["conversations"]}]);
    training.write("bad.json", &bad.to_string());
    for (stage, part) in [
        ("data: {train: bad.json}", "absent.png"),
        ("data: {eval: bad.json}", "absent.png"),
        ("adapter: {target_modules: [absent]}", "'absent'"),
    ] {
        let stages = format!("stages=[{{recipe: connector, max_steps: 1}}, {{{stage}}}]");
        let error = training.refusal(&[&stages]);
        assert!(error.contains("stage 2: ") && error.contains(part), "{error}");
        assert!(!training.path("out/stage-1").exists());
    }
}

#[test]
fn pictures_that_are_missing_broken_or_too_many_are_found_before_the_run_with_their_line() {
    let training = training("llava").set(&["max_steps=1", "data.train=rows.jsonl"]);
    let whole = std::fs::read(picture("wide.png")).unwrap();
    let path = |name: &str| training.path(name).to_str().unwrap().to_owned();
    std::fs::write(training.path("cut.png"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(training.path("absurd.ppm"), "P6\n99999 99999\n255\n").unwrap();
    training.write("notes.png", "no picture");
    let good = "{\"image\": \"wide.png\", \"conversations\": [{\"from\": \"human\", \"value\": \"<image>\"}, {\"from\": \"gpt\", \"value\": \"a\"}]}";
    let row = |images: Value, asked: &str| {
        let said = [
            json!({"role": "user", "content": asked}),
            json!({"role": "assistant", "content": "a"}),
        ];
        format!("{good}\n{}\n", json!({"images": images, "messages": said}))
    };
    for (images, asked, parts) in [
        (json!("absent.png"), "<image>", ["rows.jsonl:2: ", "absent.png", "No such file"]),
        (json!([path("cut.png")]), "<image>", ["rows.jsonl:2: ", "cut.png", "the file is cut off"]),
        (json!([path("notes.png")]), "<image>", ["rows.jsonl:2: ", "notes.png", "not an image"]),
        (json!([path("absurd.ppm")]), "<image>", ["rows.jsonl:2: ", "99999 x 99999", "at most"]),
        (
            json!(["wide.png"]),
            "<image><image>",
            ["rows.jsonl:2: ", "speaks of 2 pictures", "the row lists 1"],
        ),
        (
            json!(["wide.png"]),
            "What?",
            ["rows.jsonl:2: ", "speaks of 0 pictures", "the row lists 1"],
        ),
        (json!(null), "<image>", ["rows.jsonl:2: ", "speaks of 1 pictures", "the row lists 0"]),
        // A literal mark, for which the tokenizer has one token, as in transformers.
        (
            json!(null),
            "What is <image>?",
            ["rows.jsonl:2: ", "a text about the mark", "'< image>'"],
        ),
        (json!("https://a.b/c.png"), "<image>", ["rows.jsonl:2: ", "on the web", "download"]),
        (
            json!({"bytes": "data:;base64,AAAA"}),
            "<image>",
            ["rows.jsonl:2: ", "3 bytes", "not an image"],
        ),
    ] {
        training.write("rows.jsonl", &row(images, asked));
        let error = training.refusal(&[]);
        for part in parts {
            assert!(error.contains(part), "'{part}' is not in: {error}");
        }
        assert!(!training.path("out/checkpoints").exists());
    }
    training.write("rows.jsonl", &row(json!(["wide.png", "tall.png"]), "<image> or <image>"));
    let error = training.refusal(&["data.max_length=32"]);
    assert!(error.contains("rows.jsonl:2: a picture ends at token"), "{error}");
    let printed = training.run(&["data.max_length=32", "data.bad_lines=skip", "batch_size=1"]);
    assert!(
        printed.contains("1 documents") && printed.contains("1 bad lines skipped"),
        "{printed}"
    );
    // A model that takes text alone says so.
    let blind = crate::model("llama");
    let blind_model = format!("model={}", blind.display());
    let error = training.refusal(&["out=blind", &blind_model]);
    assert!(error.contains("pictures beside text are for models of images and texts"), "{error}");
    let asked = [
        "generate",
        "--cpu",
        "--model",
        text(&blind),
        "--prompt",
        "a",
        "--image",
        &picture("wide.png"),
    ];
    let (_, error) = texts(&output(&asked));
    assert!(error.contains("takes text alone"), "{error}");
    assert!(Path::new(&picture("wide.png")).exists());
}
