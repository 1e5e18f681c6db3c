//! Conversations with pictures become the ids that transformers' processors make of them.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use ln_tuning::pretrained::ModelFiles;
use ln_tuning_cli::language::columns::Columns;
use ln_tuning_cli::language::document::{read, Reading};
use ln_tuning_cli::language::encoder::{TextEncoder, Tokens};
use ln_tuning_cli::language::settings::LossOn;
use ln_tuning_cli::language::vision::Vision;
use serde_json::{json, Value};

use crate::common::{run_python, shared};
use crate::text::files::TextFiles;

/// Tiny models of images and texts, by their families' names, and `pictures/`; made once for all tests.
pub fn models() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = shared("picture-chats");
        let _ = std::fs::remove_dir_all(&dir);
        run_python("picture_chats.py", &["make", dir.to_str().unwrap()]);
        dir
    })
}

/// A picture's path.
pub fn picture(name: &str) -> String {
    models().join("pictures").join(name).to_str().unwrap().to_owned()
}

/// A copy of a model's words without its weights.
pub fn copied(family: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(models().join(family)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

fn encoder(model: &Path) -> anyhow::Result<TextEncoder> {
    let files = ModelFiles::open(model)?;
    TextEncoder::open(&files, &TextFiles::of(&files)?, false, LossOn::Assistant)
}

fn tokens(encoder: &TextEncoder, row: &Value) -> anyhow::Result<Tokens> {
    let names: Value = serde_yaml::from_str(ln_tuning_cli::language::SAMPLE)?;
    let columns: Columns = serde_json::from_value(names["data"]["columns"].clone())?;
    let marks = encoder.marks();
    let reading = Reading { columns: &columns, marks: &marks, images: Path::new("") };
    let read = read(row.as_object().unwrap().clone(), &reading)?;
    encoder.document(&read.document, &encoder.grids(&read.pictures, Vision::grid)?)
}

/// The texts that the loss is on.
fn learned(encoder: &TextEncoder, tokens: &Tokens) -> Vec<String> {
    let runs = tokens.counted.chunk_by(|a, b| a == b);
    let mut at = 0;
    let mut texts = Vec::new();
    for run in runs {
        if run[0] {
            let ids = &tokens.ids[at..at + run.len()];
            texts.push(encoder.tokenizer().decode(ids, false).unwrap());
        }
        at += run.len();
    }
    texts
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn chat(asked: Value, said: &str) -> Value {
    json!([{"role": "user", "content": asked}, {"role": "assistant", "content": [text(said)]}])
}

/// Conversations in parts.
fn rows() -> Vec<Value> {
    let image = json!({"type": "image"});
    let path = |name: &str| json!({"type": "image", "path": picture(name)});
    vec![
        json!({"messages": chat(json!([image, text("What is it?")]), "a cat"), "images": [picture("wide.png")]}),
        json!({"messages": chat(json!([text("Hello")]), "a dog")}),
        json!({"messages": chat(json!([path("tall.png"), text("and"), path("grey.png")]), "two"), "images": []}),
        json!({"messages": [
            {"role": "user", "content": [path("square.png"), text("What?")]},
            {"role": "assistant", "content": [text("noise")]},
            {"role": "user", "content": [text("And here?"), path("small.bmp")]},
            {"role": "assistant", "content": [text("more of it")]},
        ]}),
        json!({"messages": chat(json!([path("alpha.png")]), "a fox")}),
    ]
}

#[test]
fn conversations_with_pictures_have_the_ids_of_transformers_processors() {
    let dir = tempfile::tempdir().unwrap();
    let mut cases: Vec<(String, Vec<Value>)> =
        ["llava", "llava_next", "gemma3", "idefics3", "qwen2_5_vl", "qwen3_vl"]
            .map(|family| (family.to_owned(), rows()))
            .into();
    // A text model's template takes strings, with the mark in them.
    let strings = vec![
        json!({"messages": [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "a cat"}],
               "images": [picture("wide.png")]}),
        json!({"messages": [{"role": "user", "content": "Of <image> and <image>, which?"},
                            {"role": "assistant", "content": "the first"}],
               "images": [picture("wide.png"), picture("tall.png")]}),
        json!({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "a dog"}]}),
    ];
    cases.push(("text".into(), strings));
    let whole = "<|vision_start|><|image_pad|><|vision_end|>";
    for of_qwen in [4, 5] {
        cases[of_qwen].1.push(json!({"text": format!("Of {whole} and{whole}"), "images": [picture("wide.png"), picture("tall.png")]}));
    }
    for (name, rows) in &cases {
        let family = if name == "text" { "llava" } else { name };
        let copied = copied(family);
        std::fs::rename(copied.keep(), dir.path().join(name)).unwrap();
        if name == "text" {
            let template =
                "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}";
            std::fs::write(dir.path().join("text/chat_template.jinja"), template).unwrap();
        }
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(dir.path().join(name).join("rows.jsonl"), lines).unwrap();
    }
    let theirs = run_python("picture_chats.py", &["ids", dir.path().to_str().unwrap()]);
    let theirs: Value = serde_json::from_str(&theirs).unwrap();
    for (name, rows) in &cases {
        let encoder = encoder(&dir.path().join(name)).unwrap();
        for (row, theirs) in rows.iter().zip(theirs[name].as_array().unwrap()) {
            let tokens = tokens(&encoder, row).unwrap();
            assert_eq!(json!(tokens.ids), *theirs, "{name}: {row}");
            let id = encoder.vision.as_ref().unwrap().tokens.id;
            let on_pictures = tokens.ids.iter().zip(&tokens.counted).any(|(i, on)| *i == id && *on);
            assert!(!on_pictures && tokens.counted.contains(&true), "{name}: {row}");
            // The mark of LLaVA's data says the same.
            if let Some(given) = row["text"].as_str() {
                let mut row = row.clone();
                row["text"] = given.replace(whole, "<image>").into();
                assert_eq!(tokens, self::tokens(&encoder, &row).unwrap());
            }
        }
    }
    // LLaVA's own words say the same.
    let llava = encoder(&models().join("llava")).unwrap();
    let row = json!({"id": "7", "image": picture("wide.png"), "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a cat"},
    ]});
    let own = tokens(&llava, &row).unwrap();
    assert_eq!(own, tokens(&llava, &rows()[0]).unwrap());
    assert_eq!(learned(&llava, &own), [" a cat "]);
    // The bytes themselves, as in a Parquet file of datasets, in a picture's address, and as a file's.
    let held = STANDARD.encode(std::fs::read(picture("wide.png")).unwrap());
    let asked = |image: Value| chat(json!([image, text("What is it?")]), "a cat");
    for row in [
        json!({"messages": asked(json!({"type": "image"})),
               "images": [{"bytes": format!("data:;base64,{held}"), "path": "x.png"}]}),
        json!({"messages": asked(json!({"type": "image"})), "images": [{"bytes": null, "path": picture("wide.png")}]}),
        json!({"messages": asked(json!({"type": "image", "base64": held}))}),
        json!({"messages": asked(
            json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{held}")}}))}),
        json!({"messages": asked(json!({"type": "image", "url": format!("file://{}", picture("wide.png"))}))}),
    ] {
        assert_eq!(own, tokens(&llava, &row).unwrap(), "{row}");
    }
}

#[test]
fn a_llava_without_a_template_has_the_prompts_of_vicuna() {
    let dir = copied("llava");
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    let encoder = encoder(dir.path()).unwrap();
    let row = json!({"image": picture("wide.png"), "conversations": [
        {"from": "human", "value": "What is it?\n<image>"}, {"from": "gpt", "value": "a cat"},
        {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."},
    ]});
    let tokens = tokens(&encoder, &row).unwrap();
    let text = encoder.tokenizer().decode(&tokens.ids, false).unwrap();
    let pictures = "<image>".repeat(16);
    assert_eq!(
        text,
        format!(
            "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, \
             detailed, and polite answers to the user's questions. USER: {pictures}\nWhat is it? ASSISTANT: a cat</s>USER: \
             Sure? ASSISTANT: Yes.</s>"
        )
    );
    assert_eq!(learned(&encoder, &tokens), [" a cat</s>", "Yes.</s>"]);
}

#[test]
fn what_the_processors_file_does_not_say_follows_from_the_model_and_what_it_says_must_fit() {
    let dir = copied("llava");
    let path = dir.path().join("processor_config.json");
    let given: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let with = |changes: Value| {
        let mut all = given.clone();
        for (key, value) in changes.as_object().unwrap() {
            all[key] = value.clone();
            if value.is_null() {
                all.as_object_mut().unwrap().remove(key);
            }
        }
        std::fs::write(&path, all.to_string()).unwrap();
        encoder(dir.path()).map(|encoder| encoder.vision.unwrap().tokens.count)
    };
    let nothing = json!({
        "patch_size": null, "num_additional_image_tokens": null, "vision_feature_select_strategy": null,
        "image_token": null,
    });
    assert_eq!(with(nothing).unwrap(), 16);
    assert_eq!(with(json!({"num_additional_image_tokens": null})).unwrap(), 16);
    for wrong in [
        json!({"num_additional_image_tokens": 0}),
        json!({"patch_size": 14}),
        json!({"vision_feature_select_strategy": "full"}),
    ] {
        let error = format!("{:#}", with(wrong.clone()).unwrap_err());
        assert!(error.contains("image tokens") && error.contains("and the model 16"), "{error}");
    }
}
