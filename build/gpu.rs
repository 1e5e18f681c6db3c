//! The fused functions on CUDA, for the feature `kernels`: C++ that finds CUDA at run time, and the source of the kernels,
//! which is compiled on the user's machine.

use std::path::PathBuf;

/// The texts that the C++ holds: the first includes the others.
const TEXTS: [&str; 8] = [
    "kernels.cu",
    "arguments.h",
    "cross_entropy.cuh",
    "gated.cuh",
    "kinds.cuh",
    "norm.cuh",
    "rope.cuh",
    "rows.cuh",
];

/// Adds the files of `csrc/gpu`.
pub fn add_to(functions: &mut cc::Build) {
    println!("cargo:rustc-cfg=fused_cuda");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let rows = TEXTS.map(|name| {
        let text = std::fs::read_to_string(PathBuf::from("csrc/gpu").join(name)).expect("a source");
        format!("{{\"{name}\", R\"~({text})~\"}},\n")
    });
    std::fs::write(out.join("gpu_texts.inc"), rows.concat())
        .expect("the build script's folder can be written");
    functions.include(out).define("LN_TUNING_GPU", None);
    for file in ["compile.cpp", "launch.cpp", "library.cpp"] {
        functions.file(PathBuf::from("csrc/gpu").join(file));
    }
}
