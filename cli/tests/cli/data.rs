//! Data becomes rows of tokens.

use serde_json::json;

use crate::program::Training;
use crate::training;

fn jsonl(training: &Training, lines: &[serde_json::Value]) {
    let text: Vec<String> = lines.iter().map(ToString::to_string).collect();
    training.write("train.jsonl", &text.join("\n"));
}

/// The loss of the first step, before anything has changed.
fn first_loss(training: &Training, out: &str) -> f64 {
    training.series(out, "loss")[0].1
}

#[test]
fn packed_documents_have_the_loss_that_they_have_apart() {
    let training = training().set(&["max_steps=1", "batch_size=60", "data.shuffle=false"]);
    let printed = training.run(&["out=packed"]);
    assert!(printed.contains("packed into"), "{printed}");
    training.run(&["out=apart", "data.packing=false"]);
    let (packed, apart) = (first_loss(&training, "packed"), first_loss(&training, "apart"));
    assert!((packed - apart).abs() < 1e-4, "{packed} packed, {apart} apart");
    // And in random order, longest first.
    training.run(&["out=shuffled", "data.shuffle=true"]);
    let shuffled = first_loss(&training, "shuffled");
    assert!((shuffled - apart).abs() < 1e-4, "{shuffled} shuffled, {apart} apart");
}

#[test]
fn accumulated_batches_make_the_step_of_one_large_batch() {
    let training = training().set(&["max_steps=5", "data.shuffle=false", "data.packing=false"]);
    training.run(&["out=large", "batch_size=12"]);
    training.run(&["out=small", "batch_size=3", "accumulation=4"]);
    for (a, b) in training.series("large", "loss").iter().zip(training.series("small", "loss")) {
        assert!((a.1 - b.1).abs() < 1e-4, "{a:?} {b:?}");
    }
}

#[test]
fn the_loss_of_messages_is_on_the_replies_or_on_all() {
    let settings = ["data.train=train.jsonl", "max_steps=1", "batch_size=1", "data.packing=false"];
    let training = training().set(&settings);
    let (question, answer) = ("is it gold?", "all that glitters is not gold");
    let messages = json!([
        {"role": "user", "content": question}, {"role": "assistant", "content": answer},
    ]);
    jsonl(&training, &[json!({"messages": messages})]);
    training.run(&["out=replies"]);
    training.run(&["out=all", "data.loss_on=all"]);
    // The same by hand: the template writes "<|role|>content</s>".
    let prompt = format!("<|user|>{question}</s><|assistant|>");
    jsonl(&training, &[json!({"prompt": prompt, "completion": format!("{answer}</s>")})]);
    // The tokenizer would put "<s>" in front, which the template does not.
    let model = crate::model("llama");
    let bare = training.path("bare");
    std::fs::create_dir(&bare).unwrap();
    for entry in std::fs::read_dir(&model).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, bare.join(path.file_name().unwrap())).unwrap();
    }
    let text = std::fs::read_to_string(bare.join("tokenizer.json")).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_str(&text).unwrap();
    tokenizer["post_processor"] = serde_json::Value::Null;
    std::fs::write(bare.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let bare = format!("model={}", bare.display());
    training.run(&["out=by-hand", &bare]);
    let (replies, by_hand) = (first_loss(&training, "replies"), first_loss(&training, "by-hand"));
    assert!((replies - by_hand).abs() < 1e-5, "{replies}, by hand {by_hand}");
    let all = first_loss(&training, "all");
    assert!((replies - all).abs() > 1e-3, "the loss on all is that on the replies: {all}");
}

#[test]
fn long_texts_are_cut_into_pieces_and_long_completions_are_cut_off() {
    let training = training().set(&["max_steps=1", "data.max_length=16", "data.documents=file"]);
    let printed = training.run(&["out=pieces"]);
    assert!(printed.contains("1 documents"), "{printed}");
    let pieces = printed.split("tokens, ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(pieces.parse::<usize>().unwrap() > 50, "{printed}");
    let line = json!({"prompt": "to be", "completion": "or not to be, ".repeat(20)});
    let hopeless = json!({"prompt": "to be ".repeat(30), "completion": "or not"});
    jsonl(&training, &[line, hopeless]);
    let printed = training.run(&["out=cut", "data.train=train.jsonl"]);
    assert!(printed.contains("1 pieces"), "{printed}");
    assert!(printed.contains("2 cut off at 'data.max_length'"), "{printed}");
    assert!(printed.contains("1 without anything that the loss is on"), "{printed}");
}

#[test]
fn bf16_and_both_precisions_run() {
    let training = training().set(&["max_steps=8", "kind=bf16", "optimizer.lr=1e-4"]);
    let text =
        |out: &str| std::fs::read(training.path(out).join("adapter/adapter_model.safetensors"));
    training.run(&["out=master"]);
    let printed = training.run(&["out=model", "precision=model"]);
    assert!(printed.contains("weights in BFloat16"), "{printed}");
    assert!(text("master").unwrap() != text("model").unwrap());
    let first = first_loss(&training, "model");
    assert!((first - first_loss(&training, "master")).abs() < 1e-6);
}

#[test]
fn f16_trains_with_a_scaled_loss_with_and_without_checkpointing() {
    let training = training().set(&["max_steps=8"]);
    training.run(&["out=f32", "kind=f32"]);
    training.run(&["out=f16", "kind=f16"]);
    training.run(&["out=twice", "kind=f16", "checkpointing=all", "loss_scale=4096"]);
    for key in ["loss", "grad_norm"] {
        let expected = training.series("f32", key);
        for out in ["f16", "twice"] {
            for (a, b) in expected.iter().zip(training.series(out, key)) {
                assert!((a.1 - b.1).abs() < 0.02 * a.1.abs(), "{out} {key}: {a:?} {b:?}");
            }
        }
    }
}
