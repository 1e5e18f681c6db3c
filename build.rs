//! Points our own tests, examples and benches at the libtorch they were linked with, prepares the README for the
//! documentation, and compiles the C++ of the features that have some.

use std::path::Path;

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(fused)");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default();
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if !lib.is_empty() && (os == "linux" || os == "macos") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
    #[cfg(any(feature = "distributed", feature = "kernels"))]
    cpp::compile(&lib);
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&out).join("README.md"), standalone(&read("README.md")?)?)
}

fn read(path: &str) -> std::io::Result<String> {
    println!("cargo:rerun-if-changed={path}");
    std::fs::read_to_string(path)
}

/// The README where its neighbours are not beside it: pictures are in the text, other links lead to docs.rs.
fn standalone(readme: &str) -> std::io::Result<String> {
    let mut parts = readme.split("](");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let Some((path, rest)) = part.split_once(')') else {
            text += &format!("]({part}");
            continue;
        };
        let target = if path.ends_with(".svg") {
            // Every byte but letters and digits is escaped: a picture is text like any other here.
            let escaped = |byte: u8| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            };
            let picture: String = read(path)?.bytes().map(escaped).collect();
            format!("data:image/svg+xml,{picture}")
        } else if Path::new(path).exists() {
            format!("https://docs.rs/crate/ln-tuning/{}/source/{path}", env!("CARGO_PKG_VERSION"))
        } else {
            path.to_owned()
        };
        text += &format!("]({target}){rest}");
    }
    Ok(text)
}

#[cfg(any(feature = "distributed", feature = "kernels"))]
mod cpp {
    use std::path::Path;

    /// Compiles the files in `csrc` of the features that are on, against the headers of the libtorch in `lib`.
    pub(super) fn compile(lib: &str) {
        // Documentation alone needs no C++, and there is no libtorch.
        if cfg!(feature = "doc-only") {
            return;
        }
        let files: &[&str] = &[
            #[cfg(feature = "kernels")]
            "kernels.cpp",
        ];
        let include = Path::new(lib).parent().map(|root| root.join("include"));
        let include = include.filter(|dir| dir.join("ATen").is_dir()).unwrap_or_else(|| {
            panic!("the features 'distributed' and 'kernels' compile C++ against libtorch, but its headers are not in \
                    '{lib}/../include': set LIBTORCH to a libtorch, or to the directory of Python's torch, that has them")
        });
        if files.is_empty() {
            return;
        }
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").pic(true).warnings(false);
        build.include(&include).include(include.join("torch/csrc/api/include"));
        build.opt_level(3);
        for file in files {
            println!("cargo:rerun-if-changed=csrc/{file}");
            build.file(Path::new("csrc").join(file));
        }
        #[cfg(feature = "kernels")]
        fused::compile(&mut build, lib);
        build.compile("ln_tuning_csrc");
    }

    #[cfg(feature = "kernels")]
    mod fused {
        use std::path::Path;

        /// The kinds of x86 processors that the loops are compiled for, with the flags of libtorch's own loops.
        const X86: [(&str, &[&str]); 2] = [
            ("avx2", &["-mavx2", "-mfma", "-mf16c"]),
            (
                "avx512",
                &[
                    "-mavx512f",
                    "-mavx512bw",
                    "-mavx512dq",
                    "-mavx512vl",
                    "-mavx2",
                    "-mfma",
                    "-mf16c",
                ],
            ),
        ];

        /// Compiles the loops of the fused functions, once per kind of processor; `functions` chooses at run time.
        pub(super) fn compile(functions: &mut cc::Build, lib: &str) {
            let of = |name: &str| std::env::var(name).unwrap_or_default();
            println!("cargo:rerun-if-changed=csrc/loops.h");
            println!("cargo:rerun-if-changed=csrc/loops.cpp");
            println!("cargo:rustc-cfg=fused");
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
    }
}
