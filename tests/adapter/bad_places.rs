//! A place that takes no files gets an error, and is as it was.

use std::path::{Path, PathBuf};

use crate::bad_input::{attach, check, files, CONFIG};
use crate::nets::{snapshot, Net};
use ln_tuning::ErrorKind::{CorruptFile, Io};
use ln_tuning::LnTuningConfig;
use tch::Kind;

/// A directory that takes no file. Permissions do not stop root, a file system without write access does.
fn read_only(dir: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let locked = dir.join("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o555)).unwrap();
    match std::fs::File::create(locked.join("probe")) {
        Err(_) => locked,
        Ok(_) => {
            std::fs::remove_file(locked.join("probe")).unwrap();
            "/sys/kernel".into()
        }
    }
}

#[test]
fn places_that_cannot_be_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(Kind::Float);
    let tuned = attach(&net.vs, LnTuningConfig::default()).unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let blocked = dir.path().join("blocked");
    std::fs::create_dir_all(blocked.join(CONFIG)).unwrap();
    let card = dir.path().join("card");
    std::fs::create_dir(&card).unwrap();
    std::fs::write(card.join("README.md"), b"\xff\xfe").unwrap();
    let read_only = read_only(dir.path());
    let on_disk = files(dir.path());
    let before = snapshot(&net.vs);
    for (case, place, kind) in [
        ("a file", file.clone(), Io),
        ("below a file", file.join("deep"), Io),
        ("a directory where a file goes", blocked, Io),
        ("a model card that is no text", card, CorruptFile),
        ("read-only", read_only.clone(), Io),
        ("below a read-only one", read_only.join("ln-tuning-test"), Io),
    ] {
        check(case, &tuned.save_pretrained(&place).unwrap_err(), kind);
        assert_eq!(files(dir.path()), on_disk, "{case}");
    }
    assert_eq!(snapshot(&net.vs), before);
}

/// The child of the next test: saves under a limit of 1 KiB a file.
#[test]
fn a_save_that_runs_out_of_space_child() {
    let Some(dir) = std::env::var_os("LN_TUNING_FULL_DISK") else { return };
    let net = Net::new(Kind::Float);
    let tuned = attach(&net.vs, LnTuningConfig::default().modules_to_save(["up", "head"])).unwrap();
    check("full", &tuned.save_pretrained(Path::new(&dir)).unwrap_err(), Io);
}

#[test]
fn a_save_that_runs_out_of_space_keeps_the_old_files() {
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(Kind::Float);
    let tuned = attach(&net.vs, LnTuningConfig::default()).unwrap();
    tuned.save_pretrained(dir.path()).unwrap();
    let on_disk = files(dir.path());
    // The kernel refuses a write beyond the limit as it does on a full disk, in the middle of a file.
    let script =
        "trap '' XFSZ; ulimit -f 1; exec \"$0\" --exact bad_places::a_save_that_runs_out_of_space_child";
    let output = std::process::Command::new("bash")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .env("LN_TUNING_FULL_DISK", dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(files(dir.path()), on_disk);
}
