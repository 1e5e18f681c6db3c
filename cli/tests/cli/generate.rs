//! Text from adapters that `train` has made.

use crate::common::run_python;
use crate::program::program;
use crate::{model, training};

fn generate(arguments: &[&str]) -> std::process::Output {
    let mut command = program();
    command.args(["generate", "--cpu", "--model", model("llama").to_str().unwrap()]);
    command.args(arguments).output().unwrap()
}

fn text(arguments: &[&str]) -> String {
    let output = generate(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn answers_are_those_of_transformers_and_peft_alone_and_side_by_side() {
    let training = training().set(&["max_steps=40", "optimizer.lr=0.1"]);
    training.run(&["out=a"]);
    training.run(&["out=b", "optimizer.lr=0.3"]);
    let path = |out: &str| training.path(out).join("adapter").to_str().unwrap().to_owned();
    let (a, b) = (path("a"), path("b"));
    let base = model("llama");
    let prompt = "the quick brown";
    let theirs =
        run_python("finetune.py", &["generate", base.to_str().unwrap(), prompt, "12", &a, &b]);
    let theirs: Vec<String> = serde_json::from_str(&theirs).unwrap();
    assert!(
        theirs[0] != theirs[1] && theirs[1] != theirs[2],
        "the adapters do nothing: {theirs:?}"
    );
    let common = ["--prompt", prompt, "--max-new-tokens", "12"];
    let with = |more: &[&str]| text(&[&common, more].concat());
    let (first, second) = (format!("first={a}"), format!("second={b}"));
    assert_eq!(with(&[]), format!("{}\n", theirs[0]));
    assert_eq!(with(&["--adapter", &first]), format!("{}\n", theirs[1]));
    let table = with(&["--adapter", &first, "--adapter", &second, "--base"]);
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["base", "first", "second"]);
    let words = |text: &str| text.chars().filter(|c| c.is_ascii_alphanumeric()).count();
    let expected: usize = theirs.iter().map(|text| words(text)).sum();
    assert_eq!(words(&table), expected + words("basefirstsecond"), "{table}\n{theirs:?}");
    // Rows of one batch have prompts of many lengths and adapters of their own.
    let alone = |adapter: &[&str], prompt: &str| {
        text(&[&["--prompt", prompt, "--max-new-tokens", "12"], adapter].concat())
    };
    let prompts = [prompt, "a", "is it gold or is it silver that is under the old hill?"];
    let both = ["--adapter", &first, "--adapter", &second];
    let prompts_of = prompts.map(|prompt| ["--prompt", prompt]).concat();
    let own = format!("second={}", prompts[2]);
    let of_base = format!("__base__={}", prompts[1]);
    let for_some = ["--prompt-for", &own, "--prompt-for", &of_base, "--max-new-tokens", "12"];
    let found = text(&[&both[..], &prompts_of, &for_some].concat());
    let expected = prompts.map(|prompt| {
        format!(
            "> {prompt} first second {} {}",
            alone(&both[..2], prompt),
            alone(&both[2..], prompt)
        )
    });
    let expected = expected.concat()
        + &format!("> {} second {}", prompts[2], alone(&both[2..], prompts[2]))
        + &format!("> {} base {}", prompts[1], alone(&[], prompts[1]));
    assert_eq!(letters(&found), letters(&expected), "{found}");
}

/// The number of times that each letter stands in a text: columns and rules aside, whole tables can be compared so.
pub fn letters(text: &str) -> std::collections::BTreeMap<char, usize> {
    let mut counts = std::collections::BTreeMap::new();
    for letter in text.chars().filter(|c| c.is_alphanumeric()) {
        *counts.entry(letter).or_default() += 1;
    }
    counts
}

#[test]
fn a_chat_goes_through_the_template_and_mistakes_are_named() {
    let chat = text(&["--chat", "--prompt", "is it gold?", "--max-new-tokens", "5"]);
    let plain = text(&["--prompt", "is it gold?", "--max-new-tokens", "5"]);
    assert_ne!(chat, plain);
    for (arguments, part) in [
        (vec!["--prompt", "a", "--adapter", "absent"], "expected NAME=DIR"),
        (vec!["--prompt", "a", "--adapter", "x=absent"], "absent"),
        (vec!["--prompt", "a", "--top-p", "2"], "top_p is 2"),
        (vec!["--prompt-for", "a"], "expected NAME=TEXT"),
        (
            vec!["--prompt-for", "x=a"],
            "names no adapter: give --adapter 'x=DIR', or one of __base__",
        ),
    ] {
        let output = generate(&arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(part), "{error}");
        assert!(!error.contains("panicked"), "{error}");
    }
}
