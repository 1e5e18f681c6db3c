//! Tiny random checkpoints of transformers.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::common::run_python;
use crate::counting::in_child;

/// One for each way in which a model can be, 83 of them, made once for all tests of this process and its children.
/// Call it before `Gpu::run`: Python has no business under the counting runtime.
pub fn checkpoints() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-checkpoints");
        if !in_child() {
            let _ = std::fs::remove_dir_all(&dir);
            for script in ["decoders.py", "encoders.py", "seq2seq.py", "vision.py", "vit.py"] {
                let family = dir.join(script.trim_end_matches(".py"));
                let made = [family.to_str().unwrap(), "--checkpoints"];
                let command = if script == "encoders.py" { &["make"][..] } else { &[] };
                run_python(script, &[command, &made].concat());
            }
        }
        dir
    })
}

/// Their directories.
pub fn all() -> Vec<PathBuf> {
    let below = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let mut all: Vec<PathBuf> = below(checkpoints()).iter().flat_map(|dir| below(dir)).collect();
    all.sort();
    assert_eq!(all.len(), 83);
    all
}
