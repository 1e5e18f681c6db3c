//! Points our own tests, examples and benches at the libtorch they were linked with, and prepares the README for the
//! documentation.

use std::path::Path;

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default();
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if !lib.is_empty() && (os == "linux" || os == "macos") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
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
