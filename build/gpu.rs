//! The fused functions on CUDA, for the feature `kernels`: C++ that finds CUDA at run time, and the source of the kernels,
//! which is compiled on the user's machine.

use std::path::PathBuf;

/// The texts that the C++ holds, by the names under which it includes them.
const TEXTS: [(&str, &str); 2] =
    [("arguments_text.inc", "arguments.h"), ("kernels_text.inc", "kernels.cu")];

/// Adds the files of `csrc/gpu`.
pub fn add_to(functions: &mut cc::Build) {
    println!("cargo:rustc-cfg=fused_cuda");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    for (name, file) in TEXTS {
        let text = std::fs::read_to_string(PathBuf::from("csrc/gpu").join(file)).expect("a source");
        std::fs::write(out.join(name), format!("R\"~({text})~\""))
            .expect("the build script's folder can be written");
    }
    functions.include(out).define("LN_TUNING_GPU", None);
    for file in ["compile.cpp", "launch.cpp", "library.cpp"] {
        functions.file(PathBuf::from("csrc/gpu").join(file));
    }
}
