//! What several tests need: the Python that has PEFT.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository, which is the directory of this package or the one above.
pub fn root() -> PathBuf {
    let mut above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    above.find(|dir| dir.join("tests/python").is_dir()).expect("the repository").to_owned()
}

/// The interpreter with the packages of `tests/python/requirements.txt`: `LN_TUNING_PYTHON`, or the one in `.venv`.
pub fn python() -> Command {
    let path = std::env::var_os("LN_TUNING_PYTHON").map(PathBuf::from);
    let path = path.unwrap_or_else(|| root().join(".venv/bin/python"));
    assert!(
        path.exists(),
        "'{}' is not there: run `make setup-tests`, or set LN_TUNING_PYTHON to a Python with the packages of \
         tests/python/requirements.txt",
        path.display()
    );
    let mut command = Command::new(path);
    command.env("HF_HUB_OFFLINE", "1").env("OMP_NUM_THREADS", "1").env("PYTHONUNBUFFERED", "1");
    command
}

/// Runs a script of `tests/python` and gives what it printed; a failure shows all of its output.
pub fn run_python(script: &str, args: &[&str]) -> String {
    let script = root().join("tests/python").join(script);
    let output = python().arg(script).args(args).output().expect("Python starts");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the script failed: {}\n{out}\n{err}", output.status);
    out.into_owned()
}
