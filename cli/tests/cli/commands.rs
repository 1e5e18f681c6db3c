//! Every command: help, errors, exit codes, pipes, completions.

use std::process::{Command, Stdio};

use crate::program::{output, printed, program, refusal, texts};

const COMMANDS: [&str; 7] =
    ["train", "generate", "plan", "inspect", "merge", "verify", "completions"];

#[test]
fn help_shows_an_example_of_every_command() {
    let whole = printed(&["--help"]);
    for command in COMMANDS {
        assert!(whole.contains(command), "{whole}");
        let help = printed(&[command, "--help"]);
        let example = help.split("Example:\n").nth(1).unwrap_or_else(|| panic!("{help}"));
        assert!(example.contains(&format!("ln-tuning {command} ")), "{help}");
    }
    assert!(printed(&["--version"]).starts_with("ln-tuning "));
}

#[test]
fn the_program_needs_no_environment() {
    let output = program().env_clear().args(["plan", "--model", "absent"]).output().unwrap();
    let (_, words) = texts(&output);
    assert_eq!(
        output.status.code(),
        Some(1),
        "libtorch is found by the program's own path: {words}"
    );
    assert!(words.starts_with("error: ") && words.contains("absent"), "{words}");
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [
        vec![],
        vec!["tune"],
        vec!["train"],
        vec!["plan"],
        vec!["train", "--set", "a=b", "--json"],
        vec!["plan", "--model", "x", "--norms", "some"],
        vec!["verify", "--model", "x"],
    ] {
        assert_eq!(output(&arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn errors_are_one_line_without_a_backtrace() {
    for arguments in [
        vec!["train", "absent.yaml"],
        vec!["train", "--set", "model=absent", "--set", "data.train=absent.csv"],
        vec!["generate", "--model", "absent", "--prompt", "a", "--cpu"],
        vec!["plan", "--model", "absent"],
        vec!["inspect", "absent"],
        vec!["merge", "--base", "absent", "--adapter", "absent", "--out", "absent/out"],
    ] {
        assert!(refusal(&arguments).contains("absent"), "{arguments:?}");
        let output = program().args(&arguments).env("RUST_BACKTRACE", "full").output().unwrap();
        assert_eq!(texts(&output).1.trim(), refusal(&arguments));
    }
    // An error of libtorch, which adds the frames of its own code.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("reference.st"), "no tensors").unwrap();
    let arguments = ["verify", "--model", "absent", "--reference", "reference.st"];
    let output = program().args(arguments).current_dir(dir.path()).output().unwrap();
    let words = texts(&output).1;
    assert_eq!((output.status.code(), words.lines().count()), (Some(2), 1), "{words}");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let program = crate::program::path().into_string().unwrap();
    for command in ["completions bash", "train --sample language", "train --help"] {
        // Nobody reads: `true` ends at once, and what is written waits for that.
        let line = format!("(sleep 0.2; '{program}' {command}) | true; sleep 0.5");
        let output = Command::new("bash").args(["-c", &line]).output().unwrap();
        assert_eq!(texts(&output).1, "", "{command}");
        let line = format!("set -o pipefail; '{program}' {command} | head -n 1");
        let output = Command::new("bash").args(["-c", &line]).output().unwrap();
        let (out, err) = texts(&output);
        assert!(out.lines().count() == 1 && err.is_empty(), "{command}: {out}{err}");
    }
}

#[test]
fn completions_are_accepted_by_the_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = printed(&["completions", shell]);
        for command in COMMANDS {
            assert!(script.contains(command), "{shell} completes {command}");
        }
        assert!(script.contains("heatmap"), "{shell} completes flags");
    }
    let script = printed(&["completions", "bash"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("completions.bash");
    std::fs::write(&file, script).unwrap();
    let asked = "source \"$0\"; COMP_WORDS=(ln-tuning insp); COMP_CWORD=1; _ln__tuning ln-tuning insp ln-tuning; \
                 echo \"${COMPREPLY[@]}\"";
    let output =
        Command::new("bash").args(["-c", asked]).arg(&file).stderr(Stdio::inherit()).output();
    assert_eq!(texts(&output.unwrap()).0.trim(), "inspect");
}
