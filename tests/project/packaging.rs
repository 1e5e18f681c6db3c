//! The package that `cargo publish` would send: without a warning, complete, and documented where there is no libtorch.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const NAME: &str = concat!("ln-tuning-", env!("CARGO_PKG_VERSION"));

/// Runs a command to its end and gives its standard output; a failure or a warning shows all that it said.
fn run(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && !err.contains("warning"), "{command:?}:\n{out}\n{err}");
    out.into_owned()
}

/// `cargo package` with what every call needs.
fn package() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(ROOT).args(["package", "--package", "ln-tuning", "--allow-dirty"]);
    cargo.args(["--locked", "--offline"]);
    cargo
}

/// The files of the package, as paths below its root.
fn files() -> BTreeSet<String> {
    run(package().arg("--list")).lines().map(str::to_owned).collect()
}

#[test]
fn the_package_has_no_warning_and_its_documentation_needs_no_libtorch_and_shows_its_pictures() {
    // Outside the clone, so that its `.cargo/config.toml` does not name a libtorch.
    let dir = tempfile::tempdir().unwrap();
    // The build directory of the tests, where most dependencies are built already.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    run(package().arg("--no-verify").arg("--target-dir").arg(target));
    let archive = target.join("package").join(format!("{NAME}.crate"));
    // With the time of now, or cargo would take what it has built of an older package.
    run(Command::new("tar").arg("-xzmf").arg(archive).arg("-C").arg(dir.path()));

    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["doc", "--no-deps", "--features", "doc-only,distributed", "--locked", "--offline"]);
    cargo.current_dir(dir.path().join(NAME)).env("CARGO_TARGET_DIR", target);
    cargo.env("RUSTDOCFLAGS", "-D warnings");
    for libtorch in ["LIBTORCH", "LIBTORCH_USE_PYTORCH", "LIBTORCH_LIB", "LIBTORCH_INCLUDE"] {
        cargo.env_remove(libtorch);
    }
    run(&mut cargo);
    let page = std::fs::read_to_string(target.join("doc/ln_tuning/index.html")).unwrap();
    let pictures: Vec<&str> = page.split("<img src=\"").skip(1).collect();
    assert!(!pictures.is_empty());
    assert!(pictures.iter().all(|picture| picture.starts_with("data:image/svg+xml,%3Csvg")));
}

#[test]
fn every_test_is_packed_with_what_it_needs() {
    let packed = files();
    let mut folders = vec![Path::new(ROOT).join("tests")];
    let mut missing = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() && !path.ends_with("__pycache__") {
                folders.push(path);
            } else if path.is_file() && !packed.contains(&name) {
                missing.push(name);
            }
        }
    }
    assert!(missing.is_empty(), "not in the package: {missing:?}");
}

#[test]
fn every_link_of_the_front_pages_leads_to_a_file_of_the_package() {
    let packed = files();
    for page in ["README.md", "BENCHMARKS.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        assert!(packed.contains(page), "{page} is not in the package");
        let text = std::fs::read_to_string(Path::new(ROOT).join(page)).unwrap();
        for link in text.split("](").skip(1).filter_map(|part| part.split(')').next()) {
            let folder = format!("{}/", link.trim_end_matches('/'));
            let there = link.starts_with("https://")
                || packed.iter().any(|file| file == link || file.starts_with(&folder));
            assert!(there, "{page} links to '{link}', which the package does not have");
        }
    }
}

/// The features of the library in the program for a system, by their names.
fn features(target: &str) -> String {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(ROOT).args(["tree", "--package", "ln-tuning-cli", "--target", target]);
    cargo.args([
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p} {f}",
        "--locked",
        "--offline",
    ]);
    let tree = run(&mut cargo);
    let line = tree.lines().find(|line| line.starts_with("ln-tuning v")).expect("the library");
    line.rsplit(' ').next().unwrap_or_default().to_owned()
}

/// The library refuses to be built with it elsewhere. FreeBSD stands for all others: it needs no packages besides those
/// of Linux, so that nothing is downloaded.
#[test]
fn the_program_asks_for_many_processes_on_linux_only_and_for_all_else_everywhere() {
    assert_eq!(features("x86_64-unknown-linux-gnu"), "default,distributed,kernels,models,plots");
    assert_eq!(features("x86_64-unknown-freebsd"), "default,kernels,models,plots");
}
