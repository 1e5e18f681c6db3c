//! Points our own tests, examples and benches at the libtorch they were linked with, prepares the README for the
//! documentation, and compiles the C++ of the features that have some.

use std::path::Path;

#[cfg(feature = "distributed")]
#[path = "build/c10d.rs"]
mod c10d;
#[cfg(feature = "kernels")]
#[path = "build/fused.rs"]
mod fused;
#[cfg(feature = "kernels")]
#[path = "build/gpu.rs"]
mod gpu;

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rustc-check-cfg=cfg(fused, fused_cuda)");
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
        let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
        let mut files: Vec<&str> = Vec::from([
            #[cfg(feature = "kernels")]
            "kernels.cpp",
            #[cfg(feature = "kernels")]
            "linear.cpp",
        ]);
        if cfg!(feature = "kernels") && os == "linux" {
            files.push("cuda_graph.cpp");
        }
        #[cfg(feature = "distributed")]
        {
            if let Err(reason) = super::c10d::check(Path::new(lib), &os) {
                println!("cargo::error=the feature 'distributed' of ln-tuning {reason}");
                std::process::exit(1);
            }
            files.push("c10d.cpp");
        }
        let include = Path::new(lib).parent().map(|root| root.join("include"));
        let include = include.filter(|dir| dir.join("ATen").is_dir()).unwrap_or_else(|| {
            panic!("the features 'distributed' and 'kernels' compile C++ against libtorch, but its headers are not in \
                    '{lib}/../include': set LIBTORCH to a libtorch, or to the directory of Python's torch, that has them")
        });
        if files.is_empty() {
            return;
        }
        let mut build = cc::Build::new();
        #[cfg(feature = "distributed")]
        {
            build.include(super::c10d::gloo().expect("the build script's folder can be written"));
        }
        build.cpp(true).std("c++17").pic(true).warnings(false);
        build.include(&include).include(include.join("torch/csrc/api/include"));
        build.opt_level(3);
        println!("cargo:rerun-if-changed=csrc");
        for file in files {
            build.file(Path::new("csrc").join(file));
        }
        #[cfg(feature = "kernels")]
        super::fused::compile(&mut build, lib);
        build.compile("ln_tuning_csrc");
    }
}
