//! A GGUF file wherever a command takes a model: the real SmolLM2-135M-Instruct, as llama.cpp runs it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{json, Value};

use ln_tuning::gguf::GgufFile;
use ln_tuning::pretrained::ModelFiles;

use crate::common::{run_python, shared, smollm2};
use crate::program::{best_device, printed, refusal, report, text, Training};
use crate::text::chat::{ChatTemplate, Conversation};
use crate::text::files::TextFiles;
use crate::text::{special, tokenizer};

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
    // On a GPU, auto is not bf16, in which it says something else.
    if best_device("the answer of a GGUF file") == "device=cuda" {
        let device = ["generate", "--model", text(smollm2()), "--max-new-tokens", "16"];
        let there = printed(&[&device[..], &["--chat", "--prompt", question]].concat());
        assert_eq!(there, answer);
    }
    // Its blocks can stay in the file until they are needed, but for those whose rows get another order.
    let streamed = ["--base-weights", "gguf, streamed", "--max-new-tokens", "2"];
    let short = [&common[..4], &["--chat", "--prompt", question], &streamed].concat();
    assert_eq!(printed(&short), "The capital\n");
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
    let said = printed(&["plan", "--model", text(smollm2())]);
    assert!(said.contains("538.1 MB as numbers (96.6 MB in the file's blocks"), "{said}");
    let error = refusal(&["inspect", text(smollm2())]);
    assert!(error.contains("a GGUF file, which is a model, expected an adapter"), "{error}");
}

/// Files with something odd, made once for all tests.
fn odd() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = shared("odd-gguf");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        run_python("gguf_words.py", &["odd", text(&dir)]);
        std::fs::write(dir.join("text.gguf"), "once upon a time").unwrap();
        dir
    })
}

#[test]
fn a_file_that_holds_no_language_model_is_refused_with_a_cure() {
    let dir = odd();
    for (name, parts) in [
        ("architecture", ["'zebra'", "llama"]),
        ("vision", ["sees images", "the language model"]),
        ("mmproj", ["sees images", "the language model"]),
        ("adapter", ["LoRA", "its base model"]),
        ("imatrix", ["statistics", "the file of the model"]),
        ("text", ["GGUF", "another kind of file"]),
        ("absent", ["cannot read", "No such file"]),
    ] {
        let path = dir.join(format!("{name}.gguf"));
        let model = text(&path);
        for command in [
            &["generate", "--cpu", "--prompt", "a", "--model"][..],
            &["plan", "--model"],
            &["train", "--set", "data.train=x.txt", "--set", "out=out", "--set"],
        ] {
            // A process takes a while to start.
            if command[0] != "generate" && name != "adapter" {
                continue;
            }
            let setting = format!("model={model}");
            let last = if command[0] == "train" { &setting } else { model };
            let error = refusal(&[command, &[last]].concat());
            assert!(error.contains(model), "{error}");
            assert!(parts.iter().all(|part| error.contains(part)), "{command:?}: {error}");
        }
    }
}

#[test]
fn a_tokenizer_that_cannot_be_read_is_named_and_one_beside_the_file_is_the_cure() {
    let beside = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let name = format!("{name}.gguf");
        let path = beside.path().join(&name);
        std::fs::copy(odd().join(&name), &path).unwrap();
        let words = TextFiles::of_gguf(&GgufFile::open(path).unwrap())?;
        tokenizer::open(&words, None).map(|tokenizer| (words, tokenizer))
    };
    for (name, part) in [
        ("without", "holds no tokenizer"),
        ("rule", "'tokenizer.ggml.pre' = 'zebra'"),
        ("kind", "'tokenizer.ggml.model' = 'rwkv'"),
        ("merge", "'tokenizer.ggml.merges' holds \"ab\""),
        ("parts", "`x`"),
        ("merges", "no 'tokenizer.ggml.merges'"),
        ("twice", "holds \"a\" twice"),
        ("types", "'tokenizer.ggml.token_type' has 2 values, expected 4"),
        ("id", "'tokenizer.ggml.eos_token_id' is 4"),
        ("scores", "'tokenizer.ggml.scores'"),
    ] {
        let error = format!("{:#}", open(name).map(drop).unwrap_err());
        assert!(error.contains(&format!("{name}.gguf")) && error.contains(part), "{error}");
    }
    let (words, good) = open("none").unwrap();
    assert_eq!(good.encode("abba", true).unwrap().get_ids(), [2, 1, 0]);

    std::fs::write(
        beside.path().join("tokenizer.json"),
        words.text("tokenizer.json").unwrap().unwrap(),
    )
    .unwrap();
    for name in ["without", "rule", "kind", "merge", "twice"] {
        let (_, cured) = open(name).unwrap();
        assert_eq!(cured.encode("abba", true).unwrap().get_ids(), [2, 1, 0], "{name}");
    }
    // The rest is still that of the file.
    assert_eq!(special::eos_ids(&open("rule").unwrap().0, &good).unwrap()[..1], [3]);
}

#[test]
fn a_file_with_several_templates_gives_each_by_its_name() {
    let file = GgufFile::open(odd().join("named.gguf")).unwrap();
    let chat = ChatTemplate::open(&TextFiles::of_gguf(&file).unwrap()).unwrap().unwrap();
    let mut talk = Conversation::new(vec![json!({"role": "user", "content": "Hi"})]);
    assert_eq!(chat.render(&talk, false).unwrap(), "Hi<e>");
    talk.tools = Some(json!([{}, {}]));
    assert_eq!(chat.render(&talk, false).unwrap(), "tools: 2");
}
