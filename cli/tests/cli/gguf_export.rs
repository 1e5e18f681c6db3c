//! `merge --type` makes a GGUF file of a model directory, which transformers and llama.cpp read as that model.

use crate::common::run_python;
use crate::program::{printed, refusal, text};
use crate::text::files::TextFiles;
use crate::text::tokenizer;

use ln_tuning::models::AnyModel;
use ln_tuning::pretrained::ModelFiles;
use tch::{no_grad, Device, Kind, Tensor};

#[test]
fn a_directory_becomes_a_gguf_file_that_transformers_and_llama_cpp_read_as_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    run_python("gguf_export.py", &["make", text(dir.path())]);
    for (case, kind, adapter) in [
        ("llama", "f32", ""),
        ("wind", "bf16", ""),
        ("qwen2", "f16", ""),
        ("qwen3", "q8_0", "qwen3.adapter"),
        ("slowed", "f32", ""),
        ("slower", "f32", ""),
        ("stretched", "f32", ""),
        ("loud", "f32", ""),
        ("linear", "f32", ""),
    ] {
        let (base, out, adapter) = (path(case), path(&format!("{case}.gguf")), path(adapter));
        let mut arguments = vec!["merge", "--base", &base, "--out", &out, "--type", kind];
        if case == "qwen3" {
            arguments.extend(["--adapter", &adapter]);
        }
        assert!(printed(&arguments).contains(&out), "{case}");
        // Texts are cut as before.
        let words = |path: &str| {
            let files = TextFiles::of(&ModelFiles::open(path).unwrap()).unwrap();
            tokenizer::open(&files, None).unwrap()
        };
        let (before, after) = (words(&base), words(&out));
        for text in ["the lazy fox is 12345 gold<word> it's", "</s>a  b\n\nI'll", "(12.5)"] {
            let ids = |words: &tokenizers::Tokenizer| {
                words.encode(text, true).unwrap().get_ids().to_vec()
            };
            assert_eq!(ids(&before), ids(&after), "{case}: {text}");
        }
    }
    run_python("gguf_export.py", &["check", text(dir.path())]);
    // Ropes of every type are read back as they were, far beyond the first length too.
    for case in ["llama", "slowed", "slower", "stretched", "loud", "linear"] {
        let logits = |path: &str| {
            let (_, model) = AnyModel::from_pretrained(path, Device::Cpu, Kind::Float).unwrap();
            no_grad(|| {
                model.logits(&Tensor::arange(120, (Kind::Int64, Device::Cpu)).view([1, 120]))
            })
        };
        let (before, after) = (logits(&path(case)), logits(&path(&format!("{case}.gguf"))));
        let off = (before.unwrap() - after.unwrap()).abs().max().double_value(&[]);
        assert!(off < 1e-4, "{case}: {off}");
    }

    let (base, out) = (path("llama"), path("new.gguf"));
    let refused = |changed: &[&str], cause: &str| {
        let arguments = [&["merge", "--base", &base, "--out", &out], changed].concat();
        let error = refusal(&arguments);
        assert!(error.contains(cause), "{error}");
        assert!(!std::path::Path::new(&out).exists());
    };
    let config = std::fs::read_to_string(path("llama/config.json")).unwrap();
    let words = std::fs::read_to_string(path("llama/tokenizer.json")).unwrap();
    let write =
        |name: &str, text: &str| std::fs::write(path(&format!("llama/{name}")), text).unwrap();
    for (from, to, cause) in [
        (r#""silu""#, r#""gelu""#, "'hidden_act'"),
        (r#""rope_type": "default""#, r#""rope_type": "dynamic", "factor": 2.0"#, "'rope_type'"),
        (r#""rope_type": "default""#, r#""partial_rotary_factor": 0.5"#, "'partial_rotary_factor'"),
        (r#""model_type": "llama""#, r#""model_type": "cohere""#, "type cohere"),
    ] {
        assert!(config.contains(from), "{from} in {config}");
        write("config.json", &config.replace(from, to));
        refused(&["--type", "f16"], cause);
    }
    write("config.json", &config);
    for (from, to, cause) in [
        (r#""ByteLevel""#, r#""Metaspace""#, "merges of bytes"),
        (r"1,3}", r"1,4}", "no rule of llama.cpp"),
        (r#""normalizer": null"#, r#""normalizer": {"type": "Lowercase"}"#, "Lowercase"),
    ] {
        assert!(words.contains(from), "{from}");
        write("tokenizer.json", &words.replace(from, to));
        refused(&["--type", "f16"], cause);
    }
    write("tokenizer.json", &words);
    refused(&["--adapter", &path("qwen3.adapter")], "--type f16");
    let error = refusal(&[
        "merge",
        "--base",
        &base,
        "--adapter",
        &path("qwen3.adapter"),
        "--out",
        &path("new.GGUF"),
    ]);
    assert!(error.contains("--type f16"), "{error}");
    // A directory that holds a GGUF file alone.
    let with = std::fs::create_dir(path("with"));
    with.and_then(|()| std::fs::copy(path("llama.gguf"), path("with/llama.gguf"))).unwrap();
    let adapter = path("qwen3.adapter");
    for more in [&[][..], &["--adapter", &adapter]] {
        let all = [&["merge", "--base", &path("with"), "--out", &out, "--type", "f16"], more];
        let error = refusal(&all.concat());
        assert!(error.contains("with/llama.gguf' is a GGUF file already"), "{error}");
    }
    let there = path("llama.gguf");
    let error = refusal(&["merge", "--base", &base, "--out", &there, "--type", "f16"]);
    assert!(error.contains("exists"), "{error}");
    let error = refusal(&["merge", "--base", &there, "--out", &out, "--type", "f16"]);
    assert!(error.contains("leave it out"), "{error}");
}
