//! Points the checks at the libtorch that they were linked with.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default();
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if !lib.is_empty() && (os == "linux" || os == "macos") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
