//! Rows of one batch answer, each with its adapter, as alone: whatever the base is, and how its weights are kept.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use serde_json::{json, Value};

use crate::common::run_python;
use crate::generate::letters;
use crate::pictures_ids::picture;
use crate::program::{printed, program, refusal, text, texts};
use crate::{model, pictures_train, training};

const BASE: &str = "__base__";

/// A model with adapters `a` and `b`.
struct Case {
    name: String,
    arguments: Vec<String>,
    adapters: [PathBuf; 2],
    /// Those of `a`, `b` and the base, of different lengths.
    prompts: [String; 3],
}

impl Case {
    fn new(name: &str, base: &Path, more: &[&str], adapters: [PathBuf; 2]) -> Self {
        let arguments = ["--model", text(base), "--max-new-tokens", "10"];
        let arguments = arguments.iter().chain(more).map(|word| (*word).to_owned()).collect();
        let prompts = ["the quick brown", "all that glitters is not gold; often", "a"];
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
        // Adapters that do nothing would hide whose they are.
        let plain = self.begin(&prompt(0));
        let (all, alone) = (self.end(all), alone.map(|child| self.end(child)));
        assert!(self.end(plain) != alone[0], "{}: adapter a does nothing", self.name);
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
    for (base, more) in [
        (&llama, &["--kind", "bf16"][..]),
        (&llama, &["--base-weights", "int8"]),
        (&llama, &["--base-weights", "nf4"]),
        (&llama, &["--base-weights", "streamed"]),
        (&gguf, &["--base-weights", "gguf"]),
    ] {
        Case::new(more[1], base, more, [trained("a"), trained("b")]).check();
    }
    // Names, and what would move the cursor, are shown as they are.
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
    for (family, pictures) in
        [("llava", &["wide.png", "tall.png"][..]), ("llava_next", &["wide.png"])]
    {
        let settings = ["max_steps=6", "optimizer.lr=0.2", "norms=all", "data.packing=false"];
        let training = pictures_train::training(family).set(&settings);
        training.run(&["out=a"]);
        training.run(&["out=b", "optimizer.lr=0.5"]);
        let base = crate::pictures_ids::models().join(family);
        let adapters = ["a", "b"].map(|out| training.path(out).join("adapter"));
        let files: Vec<String> = pictures.iter().map(|name| picture(name)).collect();
        let more: Vec<&str> = files.iter().flat_map(|file| ["--image", file]).collect();
        Case::new(family, &base, &more, adapters).check();
    }
}

/// Their encoders count places from the left, so that padding stands on the right.
#[test]
fn an_encoder_decoder_answers_as_in_transformers_and_peft_and_does_not_train() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: String| dir.path().join(name);
    let prompts = Case::new("", Path::new(""), &[], Default::default()).prompts;
    let arguments = ["make-seq2seq", text(dir.path()), &json!(prompts).to_string()];
    let theirs: Value = serde_json::from_str(&run_python("finetune.py", &arguments)).unwrap();
    for family in ["t5", "bart"] {
        let base = path(family.to_owned());
        let adapters = ["a", "b"].map(|name| path(format!("{family}-{name}")));
        let answers = Case::new(family, &base, &[], adapters).check();
        let theirs = &theirs[family];
        for (answer, theirs) in answers.iter().zip([&theirs[1][0], &theirs[2][1], &theirs[0][2]]) {
            assert_eq!(answer, &format!("{}\n", theirs.as_str().unwrap()), "{family}");
        }
        let words = dir.path().join("words.txt");
        std::fs::write(&words, "a penny saved is a penny earned").unwrap();
        let (base, words) =
            (format!("model={}", base.display()), format!("data.train={}", words.display()));
        let out = format!("out={}", path("out".to_owned()).display());
        let error = refusal(&["train", "--set", &base, "--set", &words, "--set", &out]);
        assert!(error.contains(&format!("is an encoder-decoder ({family})")), "{error}");
        assert!(error.contains("`Seq2Seq`"), "{error}");
    }
}
