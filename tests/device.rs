//! CUDA is loaded at run time, in any binary, and where it cannot be used the words say why.

use std::path::{Path, PathBuf};
use std::process::Command;

use ln_tuning::device::{best_device, cuda_status, load_cuda, CudaStatus};
use tch::Device;

mod common;
#[path = "cuda/counting/mod.rs"]
mod counting;

#[test]
fn the_best_device_and_the_words_agree() {
    let device = best_device();
    let status = cuda_status();
    assert_eq!(device != Device::Cpu, status.is_available(), "{status}");
    let text = status.to_string();
    match status {
        CudaStatus::Available { devices } => assert!(devices > 0 && text.contains("available on")),
        // Every reason comes with a cure behind a semicolon.
        _ => assert!(text.starts_with("CUDA is not available: "), "{text}"),
    }
    match load_cuda() {
        Ok(()) => assert!(!matches!(cuda_status(), CudaStatus::CpuBuild { .. })),
        Err(error) => assert_eq!(error.to_string(), text),
    }
}

const MANIFEST: &str = r#"
[package]
name = "downstream"
version = "0.0.0"
edition = "2021"

[dependencies]
ln-tuning = { path = "HERE", default-features = false }
tch = "TCH"

[workspace]

# As here, so that what is compiled already fits.
[profile.dev]
debug = "line-tables-only"

[profile.dev.package."*"]
debug = false
"#;

/// A user's program: no build script, no link arguments.
const MAIN: &str = r#"
use ln_tuning::device::{best_device, cuda_status};

fn loaded() -> bool {
    std::fs::read_to_string("/proc/self/maps").unwrap().contains("libtorch_cuda.so")
}

fn main() {
    let before = loaded();
    tch::manual_seed(42);
    let device = best_device();
    let sum = tch::Tensor::from_slice(&[1.0f32, 2.0]).to_device(device).sum(tch::Kind::Float);
    println!("before: {before}, after: {}, device: {device:?}, sum: {}", loaded(), sum.double_value(&[]));
    println!("{}", cuda_status());
}
"#;

/// The target directory that this test was built in: what is compiled there is not compiled again.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().to_owned()
}

/// The directory of the libtorch that this process runs with.
fn libtorch() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so")).unwrap();
    Path::new(&line[line.find('/').unwrap()..]).parent().unwrap().to_owned()
}

#[test]
fn a_downstream_crate_without_a_build_script_gets_cuda_as_well() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("src")).unwrap();
    let lock = std::fs::read_to_string(here.join("Cargo.lock")).unwrap();
    let tch = lock.split("name = \"tch\"\nversion = \"").nth(1).unwrap().split('"').next().unwrap();
    let manifest = MANIFEST.replace("HERE", here.to_str().unwrap()).replace("TCH", tch);
    std::fs::write(dir.path().join("Cargo.toml"), manifest).unwrap();
    std::fs::write(dir.path().join("Cargo.lock"), &lock).unwrap();
    std::fs::write(dir.path().join("src/main.rs"), MAIN).unwrap();
    let built = Command::new(env!("CARGO"))
        .args(["build", "--offline"])
        .current_dir(dir.path())
        .env("CARGO_TARGET_DIR", target())
        .env("LIBTORCH", libtorch().parent().unwrap())
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let program = target().join("debug/downstream");
    let run = |mut command: Command| {
        let ran = command.env("LD_LIBRARY_PATH", libtorch()).output().unwrap();
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(ran.status.success(), "{text}{}", String::from_utf8_lossy(&ran.stderr));
        println!("{text}");
        text
    };
    let mut plain = Command::new(&program);
    plain.env_remove("CUDA_VISIBLE_DEVICES");
    let text = run(plain);
    assert!(text.contains("sum: 3"), "{text}");
    // The linker leaves the library out; this crate brings it in where this libtorch has one, and before `main` where
    // there is a driver.
    let has_cuda = libtorch().join("libtorch_cuda.so").exists();
    let early = has_cuda && !matches!(cuda_status(), CudaStatus::NoDriver { .. });
    assert!(text.contains(&format!("before: {early}, after: {has_cuda}")), "{text}");
    assert_eq!(text.contains("CPU build"), !has_cuda, "{text}");

    let on_gpu = || counting::Gpu::default().command(&program);
    if let Some(command) = on_gpu() {
        let text = run(command);
        assert!(text.contains("before: true, after: true, device: Cuda(0)"), "{text}");
    }
    // Nothing is loaded for those who hide the devices, until they ask.
    if let Some(mut command) = on_gpu() {
        command.env("CUDA_VISIBLE_DEVICES", "");
        let text = run(command);
        // The counting driver hides nothing: this is what a question that came too early looks like.
        assert!(text.contains("before: false, after: true, device: Cpu"), "{text}");
        assert!(text.contains("before all that asks: tch::manual_seed"), "{text}");
    }
}
