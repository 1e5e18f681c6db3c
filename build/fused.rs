//! The loops of the fused functions, for the feature `kernels`.

use std::path::Path;

/// The kinds of x86 processors that the loops are compiled for, with the flags of libtorch's own loops.
const X86: [(&str, &[&str]); 2] = [
    ("avx2", &["-mavx2", "-mfma", "-mf16c"]),
    (
        "avx512",
        &["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
    ),
];

/// Compiles the loops of the fused functions, once per kind of processor; `functions` chooses at run time.
pub fn compile(functions: &mut cc::Build, lib: &str) {
    let of = |name: &str| std::env::var(name).unwrap_or_default();
    println!("cargo:rustc-cfg=fused");
    if of("CARGO_CFG_TARGET_OS") == "linux" {
        super::gpu::add_to(functions);
    }
    // The loops in several threads of libtorch's headers: with libtorch's own OpenMP, since each has threads.
    if of("CARGO_CFG_TARGET_OS") == "linux" {
        functions.flag("-fopenmp");
        let files = std::fs::read_dir(lib).into_iter().flatten().flatten();
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        match names.filter(|name| name.starts_with("libgomp")).min() {
            Some(name) => println!("cargo:rustc-link-lib=dylib:+verbatim={name}"),
            None => println!("cargo:rustc-link-lib=gomp"),
        }
    }
    let loops = |name: &str| {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").pic(true).warnings(false).opt_level(3);
        build.flag_if_supported("-Wno-psabi");
        build.define("LN_TUNING_LOOPS", Some(format!("loops_{name}").as_str()));
        build.file(Path::new("csrc/loops.cpp"));
        build
    };
    loops("plain").compile("ln_tuning_loops_plain");
    if of("CARGO_CFG_TARGET_ARCH") == "x86_64" {
        functions.define("LN_TUNING_X86", None);
        for (name, flags) in X86 {
            let mut build = loops(name);
            build.define("LN_TUNING_X86", None);
            for flag in flags {
                build.flag(flag);
            }
            build.compile(&format!("ln_tuning_loops_{name}"));
        }
    }
}
