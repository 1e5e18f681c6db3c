//! The fuzzer, run as `make fuzz` runs it.

use std::path::Path;
use std::process::{Command, Output};

fn fuzz(args: &[&str], out: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ln-tuning-fuzz"));
    command.args(args).arg("--out").arg(out).env("OMP_NUM_THREADS", "1").output().unwrap()
}

/// The rows of the table: the name of each target, and its figures.
fn rows(output: &Output) -> Vec<Vec<String>> {
    let text = String::from_utf8_lossy(&output.stdout);
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect();
    text.lines().skip(2).map(cells).collect()
}

#[test]
fn damaged_files_are_accepted_or_refused_and_nothing_else() {
    let out = tempfile::tempdir().unwrap();
    let output = fuzz(&["--rounds", "30"], out.path());
    assert!(output.status.success(), "{output:?}");
    let rows = rows(&output);
    assert_eq!(rows.len(), 8, "{output:?}");
    for row in rows {
        // Name, rounds, accepted, refused, findings.
        let [rounds, accepted, refused, findings] =
            [2, 3, 4, 5].map(|cell| row[cell].parse().unwrap());
        assert!((rounds, findings) == (30, 0) && accepted > 0 && refused > 0, "{row:?}");
    }
}

#[test]
fn panics_aborts_endless_rounds_memory_and_long_errors_are_found_and_can_be_run_again() {
    let out = tempfile::tempdir().unwrap();
    let limits = ["--seconds", "2", "--memory", "300", "--seed", "3"];
    let output =
        fuzz(&[&["--target", "faulty", "--rounds", "12"], &limits[..]].concat(), out.path());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let mut seen = [false; 5];
    for entry in std::fs::read_dir(out.path().join("faulty")).unwrap() {
        let finding = entry.unwrap().path();
        let (Ok(fault), Ok(text)) = (
            std::fs::read(finding.join("fault.txt")),
            std::fs::read_to_string(finding.join("finding.txt")),
        ) else {
            continue;
        };
        let found =
            ["planted", "SIGABRT", "for one round", "MiB of memory", "an error of 500000 bytes"];
        let fault = usize::from(fault[0]);
        assert!(text.contains(found[fault]), "{fault}: {text}");
        seen[fault] = true;
        if fault == 0 || fault == 4 {
            let again = fuzz(&["--input", finding.to_str().unwrap()], out.path());
            assert_eq!(again.status.code(), Some(1), "{again:?}");
        }
    }
    assert_eq!(seen, [true; 5], "{output:?}");
}

#[test]
fn the_same_seed_makes_the_same_files() {
    let made = |seed: &str| {
        let out = tempfile::tempdir().unwrap();
        let output = fuzz(&["--target", "config", "--rounds", "20", "--seed", seed], out.path());
        rows(&output)[0][2..6].join(" ")
    };
    assert_eq!(made("3"), made("3"));
}
