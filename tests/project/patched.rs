//! Those who take tch from elsewhere, by `[patch.crates-io]`, get one tch, which this crate uses too.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The packages named `tch` and `torch-sys` below a manifest, with where they come from.
fn packages(folder: &Path) -> Vec<(String, Value, String)> {
    // Packages for other systems need not be on this machine.
    let rustc = Command::new("rustc").arg("-vV").output().unwrap().stdout;
    let rustc = String::from_utf8(rustc).unwrap();
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--offline", "--filter-platform", host]);
    let output = cargo.current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = all["packages"].as_array().unwrap().iter();
    let all = all.filter(|package| package["name"] == "tch" || package["name"] == "torch-sys");
    all.map(|p| (text(&p["name"]), p["source"].clone(), text(&p["manifest_path"]))).collect()
}

#[test]
fn a_patched_tch_is_the_one_that_this_crate_uses() {
    let ours = packages(Path::new(ROOT));
    let (_, source, manifest) = ours.iter().find(|(name, ..)| name == "tch").unwrap();
    assert!(source.is_string());
    let dir = tempfile::tempdir().unwrap();
    // A copy stands for a fork.
    let fork = dir.path().join("fork");
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(Path::new(manifest).parent().unwrap()).arg(&fork);
    assert!(copy.status().unwrap().success());
    let program = dir.path().join("program");
    fs::create_dir_all(program.join("src")).unwrap();
    fs::write(program.join("src/main.rs"), "fn main() {}").unwrap();
    fs::copy(Path::new(ROOT).join("Cargo.lock"), program.join("Cargo.lock")).unwrap();
    let text = format!(
        "[package]\nname = \"program\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\
         [dependencies]\nln-tuning = {{ path = {ROOT:?}, features = [\"distributed\"] }}\ntch = \"0.24\"\n\
         [patch.crates-io]\ntch = {{ path = {fork:?} }}\n"
    );
    fs::write(program.join("Cargo.toml"), text).unwrap();
    let theirs = packages(&program);
    assert_eq!(theirs.len(), 2, "one tch and one torch-sys: {theirs:?}");
    let (_, source, manifest) = theirs.iter().find(|(name, ..)| name == "tch").unwrap();
    assert!(source.is_null() && Path::new(manifest).starts_with(&fork), "{manifest}");
}
