//! Rows of one batch answer, each with its adapter, as alone: whatever the base is, and how its weights are kept.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use serde_json::{json, Value};

use crate::common::run_python;
use crate::generate::letters;
use crate::pictures_ids::{models, picture};
use crate::program::{printed, program, refusal, text, texts};
use crate::{model, pictures_train, training};

const BASE: &str = "__base__";

/// A model with adapters `a` and `b`.
struct Case {
    name: String,
    arguments: Vec<String>,
    adapters: [PathBuf; 2],
    /// Those of `a`, `b` and the base, of different lengths; the base has that of `a`.
    prompts: [String; 3],
}

impl Case {
    fn new(name: &str, base: &Path, more: &[&str], adapters: [PathBuf; 2]) -> Self {
        let arguments = ["--model", text(base), "--max-new-tokens", "10"];
        let arguments = arguments.iter().chain(more).map(|word| (*word).to_owned()).collect();
        let prompts = ["a", "all that glitters is not gold; often", "a"];
        Case { name: name.to_owned(), arguments, adapters, prompts: prompts.map(str::to_owned) }
    }

    fn begin(&self, arguments: &[String]) -> Child {
        let mut command = program();
        command.args(["generate", "--cpu"]).args(&self.arguments).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn end(&self, child: Child) -> String {
        let output = child.wait_with_output().unwrap();
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{}: {err}", self.name);
        out
    }

    fn adapter(&self, at: usize) -> [String; 2] {
        let name = ["a", "b"][at];
        ["--adapter".to_owned(), format!("{name}={}", self.adapters[at].display())]
    }

    /// The answers of `a`, `b` and the base, each alone.
    fn check(&self) -> [String; 3] {
        let names = ["a", "b", BASE];
        let prompt = |at: usize| ["--prompt".to_owned(), self.prompts[at].clone()];
        let mut all = [self.adapter(0), self.adapter(1)].concat();
        for (name, prompt) in names.iter().zip(&self.prompts) {
            all.extend(["--prompt-for".to_owned(), format!("{name}={prompt}")]);
        }
        let all = self.begin(&all);
        let alone = [
            self.begin(&[self.adapter(0), prompt(0)].concat()),
            self.begin(&[self.adapter(1), prompt(1)].concat()),
            self.begin(&prompt(2)),
        ];
        let (all, alone) = (self.end(all), alone.map(|child| self.end(child)));
        // An adapter that does nothing would hide whose row it is.
        assert!(alone[0] != alone[2], "{}: adapter a does nothing", self.name);
        let titles = ["a", "b", "base"].iter().zip(&self.prompts).zip(&alone);
        let expected: String =
            titles.map(|((name, prompt), answer)| format!("> {prompt} {name} {answer}")).collect();
        assert_eq!(letters(&all), letters(&expected), "{}: {all}\n{expected}", self.name);
        alone
    }
}

#[test]
fn rows_answer_as_alone_on_every_kind_of_base() {
    let training = training().set(&["max_steps=16", "optimizer.lr=0.2", "batch_size=2"]);
    let trained = |out: &str| training.path(out).join("adapter");
    training.run(&["out=a"]);
    training.run(&["out=b", "seed=3", "optimizer.lr=0.5"]);
    let (llama, gguf) = (model("llama"), training.path("model.gguf"));
    let (from, to) = (text(&llama), text(&gguf));
    printed(&["merge", "--base", from, "--out", to, "--type", "q8_0"]);
    for (base, more) in [(&llama, "nf4"), (&llama, "streamed"), (&gguf, "gguf")] {
        Case::new(more, base, &["--base-weights", more], [trained("a"), trained("b")]).check();
    }
    // The base leaves its title to an adapter of that name.
    let adapter = format!("base={}", trained("a").display());
    let shown = printed(&[
        "generate",
        "--cpu",
        "--model",
        from,
        "--adapter",
        &adapter,
        "--base",
        "--prompt",
        "a",
        "--max-new-tokens",
        "3",
    ]);
    let head: Vec<&str> = shown.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, [BASE, "base"]);
}

#[test]
fn rows_with_pictures_answer_as_alone() {
    let settings = ["max_steps=4", "optimizer.lr=0.2", "norms=all", "data.packing=false"];
    let training = pictures_train::training("llava_next").set(&settings);
    training.run(&["out=a"]);
    training.run(&["out=b", "optimizer.lr=0.5"]);
    let base = models().join("llava_next");
    let adapters = ["a", "b"].map(|out| training.path(out).join("adapter"));
    let (wide, tall) = (picture("wide.png"), picture("tall.png"));
    Case::new("llava_next", &base, &["--image", &wide, "--image", &tall], adapters).check();
}

/// Their encoders count places from the left, so that padding stands on the right.
#[test]
fn an_encoder_decoder_answers_as_in_transformers_and_peft_and_does_not_train() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let prompts = Case::new("", Path::new(""), &[], Default::default()).prompts;
    let arguments = ["make-seq2seq", text(dir.path()), &json!(prompts).to_string()];
    let theirs: Value = serde_json::from_str(&run_python("finetune.py", &arguments)).unwrap();
    for family in ["t5", "bart"] {
        let base = path(family);
        let adapters = ["a", "b"].map(|name| path(&format!("{family}-{name}")));
        let answers = Case::new(family, &base, &[], adapters).check();
        let theirs = &theirs[family];
        for (answer, theirs) in answers.iter().zip([&theirs[1][0], &theirs[2][1], &theirs[0][2]]) {
            assert_eq!(answer, &format!("{}\n", theirs.as_str().unwrap()), "{family}");
        }
    }
    // Weights of several kinds in one adapter.
    let (base, adapter) = (path("t5"), format!("b={}", path("t5-b").display()));
    let half = ["--model", text(&base), "--kind", "f16", "--adapter", &adapter, "--prompt", "a"];
    printed(&[&["generate", "--cpu"], &half[..]].concat());
    std::fs::write(path("words.txt"), "a penny saved is a penny earned").unwrap();
    let [base, words, out] = [("model", "t5"), ("data.train", "words.txt"), ("out", "out")]
        .map(|(key, name)| format!("{key}={}", path(name).display()));
    let error = refusal(&["train", "--set", &base, "--set", &words, "--set", &out]);
    assert!(error.contains("is an encoder-decoder (t5)") && error.contains("`Seq2Seq`"), "{error}");
}
