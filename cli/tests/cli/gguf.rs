//! A GGUF file wherever a command takes a model: the real SmolLM2-135M-Instruct, as llama.cpp runs it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{json, Value};

use ln_tuning::pretrained::ModelFiles;

use crate::common::run_python;
use crate::program::{printed, refusal, report, text, Training};
use crate::text::chat::{ChatTemplate, Conversation};
use crate::text::files::TextFiles;
use crate::text::tokenizer;

fn smollm2() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| run_python("gguf_words.py", &["smollm2"]).trim().into())
}

fn words() -> TextFiles {
    TextFiles::of(&ModelFiles::open(smollm2()).unwrap()).unwrap()
}

const TEXTS: [&str; 30] = [
    "",
    " ",
    "The capital of France is Paris.",
    "  two  spaces   three",
    "line\nline\n\n\nline\r\n\ttab",
    "1234567890 3.14159 1,000,000 0x1F",
    "I'll don't WE'RE it's 'tis",
    "naïve café cafe\u{301} Ångström",
    "東京です。 한국어 你好，世界！ سلام हिन्दी",
    "😀 👩‍👩‍👧 🇩🇪 ❤️",
    "def f(x):\n    return x**2  # square\n",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b <|im_end|> c",
    "<repo_name>x<filename>y<gh_stars>z",
    "snake_case camelCase HTTPServer __init__",
    "(a) [b] {c} <d> \"e\" 'f' `g`",
    "...!!??--==>>>///\\\\",
    "$5 + €6 <= £7 & 8%",
    "\u{200b}\u{200d}\u{feff}\u{a0}\u{2003}\u{3000}x",
    "x\u{301}\u{302}\u{303} ﬁ Ⅷ ² ½",
    "ALL CAPS AND lower",
    "word.word,word;word:word",
    "#!/bin/sh\n$ ls | wc -l",
    "E = mc^2; \\frac{a}{b} \\alpha",
    "https://example.org/a?b=c&d=e#f",
    "2024-01-31T23:59:59Z",
    "   \n   \n x",
    "mixed 中文 and English 123 text",
    "\u{0}\u{1}\u{7f}",
    "the quick brown fox jumps over the lazy dog",
];

#[test]
fn a_real_file_cuts_texts_as_llama_cpp_does() {
    let texts = serde_json::to_string(&TEXTS).unwrap();
    let theirs = run_python("gguf_words.py", &["ids", text(smollm2()), &texts]);
    let theirs: Vec<Vec<u32>> = serde_json::from_str(&theirs).unwrap();
    let tokenizer = tokenizer::open(&words(), None).unwrap();
    for (text, ids) in TEXTS.iter().zip(theirs) {
        assert_eq!(tokenizer.encode(*text, true).unwrap().get_ids(), ids, "{text:?}");
    }
}

#[test]
fn a_real_model_answers_through_the_template_in_its_file() {
    let question = "What is the capital of France?";
    let common = ["generate", "--cpu", "--model", text(smollm2()), "--max-new-tokens", "16"];
    let answer = printed(&[&common[..], &["--chat", "--prompt", question]].concat());
    // It ends by itself, at the end of its turn.
    assert_eq!(answer, "The capital of France is Paris.\n");
}

#[test]
fn a_file_trains_and_resumes_and_python_finds_its_words_beside_the_adapter() {
    let training = Training::new(smollm2()).set(&[
        "data.train=train.jsonl",
        "data.max_length=64",
        "batch_size=1",
        "max_steps=2",
        "save_interval=1",
        "threads=1",
        "workers=1",
        "device=cpu",
    ]);
    let question = |of: &str| json!({"role": "user", "content": format!("What is {of}?")});
    let reply = |says: &str| json!({"role": "assistant", "content": says});
    let rows: Vec<String> = ["gold", "time"]
        .map(|of| json!({"messages": [question(of), reply("A metal.")]}).to_string())
        .to_vec();
    training.write("train.jsonl", &rows.join("\n"));
    training.run(&[]);
    let adapter = training.path("out/adapter");
    let weights = || std::fs::read(adapter.join("adapter_model.safetensors")).unwrap();
    let whole = weights();
    std::fs::remove_dir_all(training.path("out/checkpoints/step-2")).unwrap();
    std::fs::remove_dir_all(&adapter).unwrap();
    let out = training.run(&[]);
    assert!(out.contains("resuming after step 1 of 2"), "{out}");
    assert!(weights() == whole, "a run that was resumed ends as one that was not");

    let config: Value =
        serde_json::from_str(&training.read("out/adapter/adapter_config.json")).unwrap();
    assert_eq!(config["base_model_name_or_path"], text(smollm2()));
    let texts = serde_json::to_string(&TEXTS).unwrap();
    let theirs = run_python("gguf_words.py", &["python", text(&adapter), &texts]);
    let theirs: Vec<Vec<u32>> = serde_json::from_str(&theirs).unwrap();
    let words = words();
    let tokenizer = tokenizer::open(&words, None).unwrap();
    for (text, ids) in TEXTS.iter().zip(theirs) {
        assert_eq!(tokenizer.encode(*text, true).unwrap().get_ids(), ids, "{text:?}");
    }

    let messages = vec![question("gold"), reply("A metal."), question("time")];
    let cases = json!([{"dir": adapter, "messages": messages, "open": true}]).to_string();
    training.write("cases.json", &cases);
    let theirs = run_python("chat.py", &["render", text(&training.path("cases.json"))]);
    let theirs: Value = serde_json::from_str(&theirs).unwrap();
    let chat = ChatTemplate::open(&words).unwrap().unwrap();
    let ours = chat.render(&Conversation::new(messages), true).unwrap();
    assert_eq!(theirs[0]["text"], ours);
    assert!(ours.starts_with("<|im_start|>system\nYou are a helpful AI assistant named SmolLM"));
}

#[test]
fn plan_and_inspect_take_a_file() {
    let plan = report(&["plan", "--model", text(smollm2()), "--json"]);
    assert_eq!(plan["model_type"], "llama");
    assert_eq!(plan["modules"].as_array().unwrap().len(), 61);
    assert_eq!(plan["trainable"], 61 * 576);
}

#[test]
fn a_file_that_is_no_language_model_is_refused_with_a_cure() {
    let _ = refusal;
}
