//! The feature `distributed` says in one sentence why it cannot be built.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

#[path = "../../build/c10d.rs"]
#[allow(dead_code)]
mod build;

#[test]
fn a_libtorch_without_c10d_is_named_with_the_cure() {
    let root = std::env::var_os("LIBTORCH").expect("`.cargo/config.toml` names a libtorch");
    let lib = Path::new(&root).join("lib");
    assert_eq!(build::check(&lib, "linux"), Ok(()));
    let refused = |lib: &Path, os: &str, words: &[&str]| {
        let reason = build::check(lib, os).unwrap_err();
        for word in words.iter().chain(&["leave the feature out"]) {
            assert!(reason.contains(word), "{word}: {reason}");
        }
    };
    refused(&lib, "macos", &["needs Linux, and this is built for macos"]);
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("lib");
    fs::create_dir(&other).unwrap();
    refused(
        &other,
        "linux",
        &["ProcessGroupGloo.hpp' is not there", "USE_DISTRIBUTED and USE_GLOO"],
    );
    // The headers alone do not help: here is a library that has none of it.
    symlink(Path::new(&root).join("include"), dir.path().join("include")).unwrap();
    fs::copy(lib.join("libc10.so"), other.join("libtorch_cpu.so")).unwrap();
    refused(&other, "linux", &["lacks _ZN4c10d8TCPStoreC1E", "USE_DISTRIBUTED and USE_GLOO"]);
    fs::write(other.join("libtorch_cpu.so"), "no library").unwrap();
    let reason = build::check(&other, "linux").unwrap_err();
    assert!(reason.contains("cannot read") && reason.contains("it ends too early"), "{reason}");
}
