//! Points our own tests, examples and benches at the libtorch they were linked with, prepares the README for the
//! documentation, and compiles the C++ of the features that have some.

use std::path::Path;

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
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
        let mut files: Vec<&str> = Vec::new();
        #[cfg(feature = "distributed")]
        {
            if let Err(reason) = super::c10d::check(Path::new(lib)) {
                println!("cargo::error=the feature 'distributed' of ln-tuning {reason}");
                std::process::exit(1);
            }
            files.push("c10d.cpp");
        }
        #[cfg(feature = "kernels")]
        files.push("linear.cpp");
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
        for file in files {
            println!("cargo:rerun-if-changed=csrc/{file}");
            build.file(Path::new("csrc").join(file));
        }
        #[cfg(feature = "kernels")]
        openmp(&mut build, lib);
        build.compile("ln_tuning_csrc");
    }

    /// Loops in several threads of libtorch's headers: with libtorch's own OpenMP, since each has threads.
    #[cfg(feature = "kernels")]
    fn openmp(build: &mut cc::Build, lib: &str) {
        if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
            return;
        }
        build.flag("-fopenmp");
        let files = std::fs::read_dir(lib).into_iter().flatten().flatten();
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        match names.filter(|name| name.starts_with("libgomp")).min() {
            Some(name) => println!("cargo:rustc-link-lib=dylib:+verbatim={name}"),
            None => println!("cargo:rustc-link-lib=gomp"),
        }
    }
}

#[cfg(feature = "distributed")]
mod c10d {
    use std::fs::File;
    use std::io::{Error, Read, Result, Seek, SeekFrom};
    use std::path::{Path, PathBuf};

    /// The constructors that `c10d.cpp` calls, as the compiler names them.
    const NEEDED: [&str; 2] = ["_ZN4c10d8TCPStoreC1E", "_ZN4c10d16ProcessGroupGlooC1E"];

    /// The reason why this libtorch cannot connect processes, if it cannot.
    pub(super) fn check(lib: &Path) -> std::result::Result<(), String> {
        let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
        if os != "linux" {
            return Err(format!("needs Linux, and this is built for {os}: leave the feature out"));
        }
        let cure = "set LIBTORCH to one that is built with USE_DISTRIBUTED and USE_GLOO, as those of pytorch.org and of \
                    PyPI are, or leave the feature out";
        let header = lib.join("../include/torch/csrc/distributed/c10d/ProcessGroupGloo.hpp");
        if !header.is_file() {
            return Err(format!(
                "needs a libtorch with c10d, and '{}' is not there: {cure}",
                header.display()
            ));
        }
        let library = lib.join("libtorch_cpu.so");
        // A static one shows when it is linked.
        if !library.is_file() {
            return Ok(());
        }
        println!("cargo:rerun-if-changed={}", library.display());
        let absent = absent(&library)
            .map_err(|error| format!("cannot read '{}': {error}", library.display()))?;
        match absent {
            None => Ok(()),
            Some(name) => Err(format!(
                "needs a libtorch with c10d and Gloo, and '{}' lacks {name}: {cure}",
                library.display()
            )),
        }
    }

    /// The first name that is needed and that an ELF library of 64 bits does not have.
    fn absent(library: &Path) -> Result<Option<&'static str>> {
        let mut file = File::open(library)?;
        let head = read(&mut file, 0, 64)?;
        let (start, size, count) =
            (number(&head, 0x28, 8), number(&head, 0x3a, 2), number(&head, 0x3c, 2));
        let mut needed = NEEDED.to_vec();
        for section in 0..count {
            let section = read(&mut file, start + section * size, 64)?;
            // A table of names.
            if number(&section, 4, 4) == 3 {
                let names = read(&mut file, number(&section, 0x18, 8), number(&section, 0x20, 8))?;
                for name in names.split(|byte| *byte == 0) {
                    needed.retain(|needed| !name.starts_with(needed.as_bytes()));
                }
            }
        }
        Ok(needed.first().copied())
    }

    fn read(file: &mut File, start: u64, length: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(length).map_err(Error::other)?;
        let mut bytes = Vec::with_capacity(length.min(1 << 28));
        file.seek(SeekFrom::Start(start))?;
        file.by_ref().take(length as u64).read_to_end(&mut bytes)?;
        if bytes.len() < length {
            return Err(Error::other("it ends too early"));
        }
        Ok(bytes)
    }

    fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
        bytes[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// A folder with the headers of Gloo that c10d's includes and libtorch does not have. They are empty: `c10d.cpp`
    /// has the few names that are needed.
    pub(super) fn gloo() -> Result<PathBuf> {
        let out =
            PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("gloo_headers");
        for name in [
            "algorithm.h",
            "common/error.h",
            "context.h",
            "rendezvous/store.h",
            "transport/device.h",
        ] {
            let path = out.join("gloo").join(name);
            std::fs::create_dir_all(path.parent().unwrap_or(&out))?;
            std::fs::write(path, "")?;
        }
        Ok(out)
    }
}
