//! The program, run as users do.

mod answers;
mod bf16;
mod chat;
mod checkpoints;
mod classifier;
mod commands;
#[path = "../../../tests/common/mod.rs"]
mod common;
mod conversations;
#[path = "../../../tests/cuda/counting/mod.rs"]
mod counting;
mod cuda;
mod cuda_graph;
mod curves;
mod data;
mod device;
mod distributed;
mod dry_run;
mod formats;
mod frozen;
mod generate;
mod gguf;
mod gguf_export;
mod gguf_words;
mod image_classifiers;
mod images;
mod jinja;
mod key_mapping;
mod labels;
mod lock;
mod loss_scale;
mod merge;
mod outputs;
mod padding;
mod pictures;
mod pictures_ids;
mod pictures_sizes;
mod pictures_train;
mod plan;
mod program;
mod rank_ends;
mod ranks;
mod rates;
mod refusals;
mod replies;
mod resume;
mod sweep;
mod sweep_kinds;
mod task;
mod tasks;
mod together;
#[path = "../../../tests/trees/mod.rs"]
mod trees;
mod verify;

use std::path::PathBuf;
use std::sync::OnceLock;

use ln_tuning_cli::text;
use program::Training;

/// A tiny random model with its tokenizer, made once for all tests.
fn model(family: &str) -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let dir = MADE.get_or_init(|| {
        let dir = common::shared("language");
        let _ = std::fs::remove_dir_all(&dir);
        for family in ["llama", "gpt2"] {
            let dir = dir.join(family);
            common::run_python("finetune.py", &["make-lm", dir.to_str().unwrap(), family]);
        }
        dir
    });
    dir.join(family)
}

const SENTENCES: [&str; 4] = [
    "the quick brown fox jumps over the lazy dog",
    "a stitch in time saves nine, and a penny saved is a penny earned",
    "all that glitters is not gold; often have you heard that told",
    "to be, or not to be, that is the question",
];

/// Paragraphs of one to three sentences.
fn text(count: usize) -> String {
    let paragraph = |i: usize| {
        let parts: Vec<&str> = (0..=i % 3).map(|j| SENTENCES[(i * 7 + j * 5) % 4]).collect();
        parts.join("; ")
    };
    (0..count).map(paragraph).collect::<Vec<_>>().join("\n\n")
}

/// Training of a tiny Llama on 60 paragraphs, on the CPU, or on the device that `LN_TUNING_TEST_DEVICE` names.
fn training() -> Training {
    let training = Training::new(&model("llama"));
    training.write("train.txt", &text(60));
    let device = std::env::var("LN_TUNING_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let settings = [
        "data.train=train.txt",
        "data.max_length=64",
        "batch_size=4",
        "optimizer.lr=0.02",
        "threads=1",
        "workers=1",
        &format!("device={device}"),
    ];
    training.set(&settings)
}
