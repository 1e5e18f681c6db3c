//! `merge` writes a directory without an adapter, and `inspect` says what an adapter holds.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::common::run_python;
use crate::program::{printed, refusal, report, text};

/// All files below a directory, and what they hold.
fn files(dir: &Path) -> HashMap<PathBuf, Vec<u8>> {
    let mut files = HashMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    files
}

/// `merge` writes what the library's `merge` writes, which is compared with PEFT elsewhere, and says what it wrote.
#[test]
fn merging_writes_whole_directories() {
    let dir = tempfile::tempdir().unwrap();
    run_python("merge.py", &["make", text(dir.path())]);
    let mut cases = 0;
    for case in std::fs::read_dir(dir.path()).unwrap() {
        let case = case.unwrap().path();
        let (base, adapter, out) = (case.join("base"), case.join("adapter"), case.join("merged"));
        let arguments = [
            "merge",
            "--base",
            text(&base),
            "--adapter",
            text(&adapter),
            "--out",
            text(&out),
            "--json",
        ];
        let said = report(&arguments);
        assert!(!said["merged"].as_array().unwrap().is_empty(), "{said}");
        assert_eq!(said["left_out"], json!(["pytorch_model.bin"]));
        let written = files(&out);
        assert_eq!(said["files"], written.len());
        std::fs::remove_dir_all(&out).unwrap();
        ln_tuning::merge(&base, &adapter, &out, |_, _| ()).unwrap();
        assert!(files(&out) == written, "{case:?}");

        // A second time the place is taken, and nothing happens to it.
        let before = std::fs::metadata(out.join("config.json")).unwrap().modified().unwrap();
        let words = refusal(&arguments);
        assert!(words.contains("not empty"), "{words}");
        assert_eq!(std::fs::metadata(out.join("config.json")).unwrap().modified().unwrap(), before);
        inspect(&base, &adapter, &case.join("map.svg"));
        cases += 1;
    }
    assert_eq!(cases, 4);
}

fn inspect(base: &Path, adapter: &Path, map: &Path) {
    let (base, adapter, map) = (text(base), text(adapter), text(map));
    let report = report(&["inspect", adapter, "--base", base, "--heatmap", map, "--json"]);
    assert_eq!(report["config"]["peft_type"], "LN_TUNING");
    let (tensors, moved) =
        (report["tensors"].as_array().unwrap(), report["moved"].as_array().unwrap());
    assert_eq!(tensors.len(), moved.len());
    assert!(moved.iter().all(|row| row["rms"].as_f64().unwrap() > 0.1), "{report:#}");
    assert!(std::fs::read_to_string(map).unwrap().contains("</svg>"));
    let table = printed(&["inspect", adapter, "--base", base]);
    assert!(table.contains("largest"), "{table}");
    refusal(&["inspect", &format!("{adapter}/nowhere")]);
}
