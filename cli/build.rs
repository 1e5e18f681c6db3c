//! Points the program at the libtorch that it was linked with, so that it needs no environment once it is installed, and
//! says where it can train in many processes.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(distributed)");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default();
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if !lib.is_empty() && (os == "linux" || os == "macos") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
    // The library has processes on Linux only.
    if cfg!(feature = "distributed") && os == "linux" {
        println!("cargo:rustc-cfg=distributed");
    }
}
