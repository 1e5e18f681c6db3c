//! The library of the counting runtime: compiled once, from `tests/cuda/runtime`, for this libtorch.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::common::root;

/// The CUDA that the runtime's sources are written for: that of the wheels of torch 2.11 and later.
const RUNTIME: &str = "libcudart.so.13";

/// The library, to be loaded before all others; or the reason why there is none, said once, in one line.
pub fn library() -> Option<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        build().inspect_err(|reason| {
            // The harness would keep what `eprintln!` writes to itself.
            let _ = writeln!(std::io::stderr(), "tests of CUDA are skipped: {reason}");
        })
    });
    built.as_deref().ok()
}

fn build() -> Result<PathBuf, String> {
    let libtorch = libtorch().ok_or("libtorch is linked statically")?;
    if !libtorch.join("libtorch_cuda.so").exists() {
        return Err(format!("the libtorch in '{}' has no CUDA libraries", libtorch.display()));
    }
    let libraries = ["libtorch_cuda.so", "libc10_cuda.so", "libcaffe2_nvrtc.so"];
    let libraries: Vec<PathBuf> = libraries.iter().map(|name| libtorch.join(name)).collect();
    let header = std::fs::read(&libraries[1]).map_err(|error| error.to_string())?;
    if !header.windows(RUNTIME.len()).any(|bytes| bytes == RUNTIME.as_bytes()) {
        return Err(format!("libtorch's CUDA is not that of {RUNTIME}"));
    }
    let headers = headers(&libtorch)?;
    let missing = stubs(&libraries)?;
    let sources = root().join("tests/cuda/runtime");

    // A later build for other sources, or for another libtorch, stands beside this one.
    let mut hasher = DefaultHasher::new();
    (&headers, &missing).hash(&mut hasher);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&sources)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    for file in &files {
        std::fs::read(file).unwrap().hash(&mut hasher);
    }
    // The name under which libtorch looks for the driver.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let dir = dir.join(format!("counting-{:016x}", hasher.finish()));
    let library = dir.join("libcuda.so.1");
    if library.exists() {
        return Ok(library);
    }
    std::fs::create_dir_all(&dir).unwrap();
    // Several processes may build it at once: each gives the finished library its name in one step.
    let own = tempfile::tempdir_in(&dir).unwrap();
    std::fs::write(own.path().join("stubs.c"), missing).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-std=gnu11"]);
    cc.arg("-Wl,-soname,libcuda.so.1").arg("-I").arg(&sources);
    for dir in &headers {
        cc.arg("-isystem").arg(dir);
    }
    cc.args(files.iter().filter(|file| file.extension().is_some_and(|ending| ending == "c")));
    cc.arg(own.path().join("stubs.c")).arg("-o").arg(own.path().join("library"));
    let done = match cc.output() {
        Ok(done) => done,
        Err(error) => return Err(format!("no C compiler, `cc` ({error})")),
    };
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    std::fs::rename(own.path().join("library"), &library).unwrap();
    Ok(library)
}

/// The crate's kernels for the host, from `tests/cuda/runtime/compute`, for `COUNTING_KERNELS`. Panics if they cannot be
/// compiled.
pub fn kernels() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = root().join("tests/cuda/runtime/compute/host.cpp");
        let folder = root().join("csrc/gpu");
        let mut hasher = DefaultHasher::new();
        let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> = files.chain([source.clone()]).collect();
        files.sort();
        for file in files {
            std::fs::read(file).unwrap().hash(&mut hasher);
        }
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let library = dir.join(format!("kernels-{:016x}.so", hasher.finish()));
        if !library.exists() {
            let own = tempfile::tempdir_in(dir).unwrap();
            let built = own.path().join("library");
            let mut cxx = Command::new("c++");
            cxx.args(["-shared", "-fPIC", "-O1", "-std=c++17", "-Wno-unknown-pragmas"]);
            let done = cxx.arg("-I").arg(&folder).arg(&source).arg("-o").arg(&built).output();
            let done = done.expect("a C++ compiler, which has compiled the crate");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            std::fs::rename(built, &library).unwrap();
        }
        library
    })
}

/// The directory of the libtorch that this process runs with.
fn libtorch() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so"))?;
    Some(Path::new(&line[line.find('/')?..]).parent()?.to_owned())
}

/// The directory of libtorch, and those of CUDA's headers, where there are tests of CUDA.
pub fn headers_of_cuda() -> Option<(PathBuf, Vec<PathBuf>)> {
    library()?;
    let libtorch = libtorch()?;
    let headers = headers(&libtorch).ok()?;
    Some((libtorch, headers))
}

/// The wheels of CUDA stand beside that of torch.
fn headers(libtorch: &Path) -> Result<Vec<PathBuf>, String> {
    let packages = libtorch.ancestors().nth(2).unwrap_or(libtorch).join("nvidia");
    let found = |dir: &str, header: &str| {
        let dir = packages.join(dir).join("include");
        let message = format!("no CUDA header '{}'", dir.join(header).display());
        dir.join(header).exists().then_some(dir).ok_or(message)
    };
    Ok(vec![
        found("cu13", "cublasLt.h")?,
        found("cudnn", "cudnn_version.h")?,
        found("nccl", "nccl.h")?,
    ])
}

/// A counting stub for every function of CUDA that these libraries ask for. Those written by hand come first: stubs
/// are weak.
fn stubs(libraries: &[PathBuf]) -> Result<String, String> {
    let nm = Command::new("nm").args(["-D", "--undefined-only"]).args(libraries).output();
    let nm = nm.map_err(|error| format!("no `nm`, which comes with C compilers ({error})"))?;
    assert!(nm.status.success(), "{}", String::from_utf8_lossy(&nm.stderr));
    let text = String::from_utf8_lossy(&nm.stdout);
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("U "));
    let names = names.map(|name| name.split('@').next().unwrap_or(name));
    let names: BTreeSet<&str> = names.filter(|name| replaced(name)).collect();
    assert!(names.len() > 200, "only {} functions of CUDA are asked for", names.len());
    let mut stubs = String::from(
        "void count(const char *name);\nvoid count_on(const void *stream, const char *name);\n",
    );
    for name in names {
        // cudnn's "not supported".
        let answer = if name.starts_with("cudnn") { 3000 } else { 0 };
        // A product goes where its handle says, whose place of a stream is in `products.c`.
        let product = ["gemm", "gemv", "dot"].iter().any(|product| name.contains(product));
        stubs += &if product && name.starts_with("cublas") && !name.contains("Lt") {
            format!(
                "__attribute__((weak)) int {name}(void **handle) {{ count_on(*handle, \"{name}\"); return 0; }}\n"
            )
        } else {
            format!(
                "__attribute__((weak)) int {name}(void) {{ count(\"{name}\"); return {answer}; }}\n"
            )
        };
    }
    Ok(stubs)
}

/// True for the runtime, the driver, cuBLAS, cuDNN and NCCL. The other libraries load and do nothing without a call.
fn replaced(name: &str) -> bool {
    let driver = |rest: &str| {
        rest.starts_with(|c: char| c.is_ascii_uppercase()) && !rest.starts_with("File")
    };
    ["__cuda", "cuda", "cublas", "cudnn", "nccl"].iter().any(|prefix| name.starts_with(prefix))
        || name.strip_prefix("cu").is_some_and(driver)
}
