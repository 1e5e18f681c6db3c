//! The places that benchmarks read and write, also where there is no repository.

use std::path::PathBuf;

/// The folder with benches/*.py: `LN_TUNING_DATA`, or the repository that this was built in.
pub fn data() -> PathBuf {
    let data = std::env::var_os("LN_TUNING_DATA").map(PathBuf::from);
    data.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into())
}

/// The folder for models and reports: that of `--out FOLDER`, or one below the present folder.
#[allow(dead_code)] // train_vs_peft has the option too.
pub fn reports() -> std::io::Result<PathBuf> {
    let given = std::env::args_os().skip_while(|argument| argument != "--out").nth(1);
    let reports = given.map_or(PathBuf::from("target/bench"), PathBuf::from);
    std::fs::create_dir_all(&reports)?;
    Ok(reports)
}

/// `LN_TUNING_PYTHON`, or the one of `make setup-tests`.
pub fn python() -> PathBuf {
    let python = std::env::var_os("LN_TUNING_PYTHON").map(PathBuf::from);
    python.unwrap_or_else(|| data().join(".venv/bin/python"))
}
