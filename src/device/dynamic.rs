//! The dynamic loader: `libtorch_cuda`, the NVIDIA driver and the CUDA runtime, found in the running process.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, CStr, OsStr};
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::status::CudaStatus;
use super::symbols::symbol;

type Counter = unsafe extern "C" fn(*mut c_int) -> c_int;

/// The driver's number for "no device", also when `CUDA_VISIBLE_DEVICES` hides them all.
const NO_DEVICE: c_int = 100;

/// Loads `libtorch_cuda.so` from the directory of the `libtorch_cpu.so` that this process has mapped.
pub(super) fn load() -> Result<(), CudaStatus> {
    // Empty if /proc is not mounted: the error is then that of a static libtorch.
    let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
    if mapped(&maps, "libtorch_cuda.so").is_some() {
        return Ok(());
    }
    let cpu = mapped(&maps, "libtorch_cpu.so").ok_or(CudaStatus::LibtorchNotFound)?;
    load_from(cpu.parent().unwrap_or(Path::new("/")))
}

/// The path of the mapped file of this name. A line of `/proc/PID/maps` is five columns, then the path.
fn mapped(maps: &[u8], name: &str) -> Option<PathBuf> {
    maps.split(|&byte| byte == b'\n').find_map(|line| {
        let start = line.iter().position(|&byte| byte == b'/')?;
        let path = Path::new(OsStr::from_bytes(&line[start..]));
        (path.file_name() == Some(OsStr::new(name))).then(|| path.to_path_buf())
    })
}

fn load_from(libtorch: &Path) -> Result<(), CudaStatus> {
    let library = libtorch.join("libtorch_cuda.so");
    if !library.exists() {
        return Err(CudaStatus::CpuBuild { libtorch: libtorch.to_path_buf() });
    }
    // SAFETY: the static initialisers of libtorch_cuda run. It is in the directory of the libtorch that this process
    // already runs, so it is part of the same build; its initialisers register kernels and hooks under libtorch's own
    // locks, as they do when a binary is linked with it.
    let loaded = unsafe { Library::open(Some(&library), RTLD_NOW | RTLD_GLOBAL) };
    match loaded {
        Ok(loaded) => {
            // Never closed, since its registrations must stay valid.
            std::mem::forget(loaded);
            Ok(())
        }
        Err(error) => Err(CudaStatus::LibraryNotLoaded { library, reason: words(&error) }),
    }
}

/// The NVIDIA driver; loading it starts nothing. Never closed, since its threads outlive the first caller.
pub(super) fn driver() -> Result<ManuallyDrop<Library>, CudaStatus> {
    // SAFETY: the file of this name is the NVIDIA driver's interface; its initialisers have no requirements.
    let driver = unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) };
    let driver = driver.map_err(|error| CudaStatus::NoDriver { reason: words(&error) })?;
    Ok(ManuallyDrop::new(driver))
}

/// The number of devices that the driver sees. Asks the driver itself, and creates no context.
pub(super) fn devices_of_driver() -> Result<usize, CudaStatus> {
    let driver = driver()?;
    // SAFETY: CUresult cuInit(unsigned int), with flags 0 as its documentation demands.
    let code = unsafe {
        let init = driver.get::<unsafe extern "C" fn(u32) -> c_int>(b"cuInit\0");
        init.map_err(|error| CudaStatus::DriverFailed { reason: words(&error) })?(0)
    };
    match code {
        0 => {}
        NO_DEVICE => return Ok(0),
        code => return Err(failed("cuInit", code, driver_words(&driver, code))),
    }
    let mut devices = 0;
    // SAFETY: CUresult cuDeviceGetCount(int *count), after cuInit, with a pointer to a live int.
    let code = unsafe {
        let count = driver.get::<Counter>(b"cuDeviceGetCount\0");
        count.map_err(|error| CudaStatus::DriverFailed { reason: words(&error) })?(&mut devices)
    };
    if code != 0 {
        return Err(failed("cuDeviceGetCount", code, driver_words(&driver, code)));
    }
    if devices > 0 {
        ask_runtime()?;
    }
    Ok(usize::try_from(devices).unwrap_or(0))
}

/// Asks the CUDA runtime that comes with libtorch: it refuses a driver that is older than itself.
fn ask_runtime() -> Result<(), CudaStatus> {
    // SAFETY: cudaError_t cudaGetDeviceCount(int *count) and const char *cudaGetErrorString(cudaError_t) keep these
    // signatures in every version; the pointer is to a live int, the string is static and ends with a zero.
    unsafe {
        let Ok(count) = symbol::<Counter>("cudaGetDeviceCount") else {
            return Ok(()); // linked into libtorch_cuda and not visible: nothing more to learn
        };
        let mut devices = 0;
        let code = count(&mut devices);
        if code == 0 {
            return Ok(());
        }
        let text = symbol::<unsafe extern "C" fn(c_int) -> *const c_char>("cudaGetErrorString");
        let text = text.map(|text| text(code)).unwrap_or(std::ptr::null());
        Err(failed("cudaGetDeviceCount", code, string(text)))
    }
}

/// Bytes that are free on a device, and all of them, as CUDA's runtime counts; an error is a reason in words.
///
/// In a thread of its own, since the runtime asks for the thread's current device: setting it back would make a context
/// on the former one.
pub(super) fn memory_of(device: usize) -> Result<(u64, u64), String> {
    let asked = std::thread::Builder::new().spawn(move || {
        let index = c_int::try_from(device).map_err(|error| error.to_string())?;
        let (mut free, mut total) = (0_usize, 0_usize);
        // SAFETY: cudaError_t cudaSetDevice(int) and cudaError_t cudaMemGetInfo(size_t *free, size_t *total) keep these
        // signatures in every version; the pointers are to live numbers of that size.
        let codes = unsafe {
            let set = symbol::<unsafe extern "C" fn(c_int) -> c_int>("cudaSetDevice");
            let set = set.map_err(|error| words(&error))?;
            let ask =
                symbol::<unsafe extern "C" fn(*mut usize, *mut usize) -> c_int>("cudaMemGetInfo");
            let ask = ask.map_err(|error| words(&error))?;
            [("cudaSetDevice", set(index)), ("cudaMemGetInfo", ask(&mut free, &mut total))]
        };
        match codes.into_iter().find(|(_, code)| *code != 0) {
            Some((call, code)) => Err(format!("{call} fails with error {code}")),
            None => Ok((free as u64, total as u64)),
        }
    });
    let answer = asked.map_err(|error| error.to_string())?.join();
    answer.unwrap_or_else(|_| Err("the thread that asks has panicked".to_owned()))
}

fn failed(call: &str, code: c_int, words: Option<String>) -> CudaStatus {
    let words = words.unwrap_or_else(|| "an unknown error".to_string());
    CudaStatus::DriverFailed { reason: format!("{call}: {words}, error {code}") }
}

/// The driver's text for one of its errors.
fn driver_words(driver: &Library, code: c_int) -> Option<String> {
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: CUresult cuGetErrorString(CUresult, const char **) sets the pointer to a static string, or to null.
    unsafe {
        let describe = driver
            .get::<unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int>(b"cuGetErrorString\0");
        describe.ok()?(code, &mut text);
        string(text)
    }
}

/// # Safety
/// `text` is null or points to a string that ends with a zero and lives as long as the call.
unsafe fn string(text: *const c_char) -> Option<String> {
    // SAFETY: as the caller promises.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// The dynamic loader's own message, which is the source of libloading's error.
fn words(error: &libloading::Error) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string);
    source.unwrap_or_else(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_library_is_found_by_its_whole_name() {
        let maps = b"7f00-7f01 r-xp 00000000 fe:00 42    /opt/my torch/lib/libtorch_cpu.so\n\
            7f01-7f02 rw-p 00000000 00:00 0 \n\
            7f02-7f03 r-xp 00000000 fe:00 43    /opt/my torch/lib/libtorch.so\n";
        assert_eq!(
            mapped(maps, "libtorch_cpu.so").unwrap(),
            Path::new("/opt/my torch/lib/libtorch_cpu.so")
        );
        assert_eq!(mapped(maps, "libtorch_cuda.so"), None);
        assert_eq!(mapped(maps, "cpu.so"), None);
    }

    #[test]
    fn a_directory_without_libtorch_cuda_is_a_cpu_build() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            load_from(dir.path()),
            Err(CudaStatus::CpuBuild { libtorch: dir.path().to_path_buf() })
        );
    }

    #[test]
    fn a_library_that_the_loader_refuses_is_named_with_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("libtorch_cuda.so");
        std::fs::write(&library, "not a library at all").unwrap();
        let Err(CudaStatus::LibraryNotLoaded { library: named, reason }) = load_from(dir.path())
        else {
            panic!("a text file was loaded")
        };
        assert_eq!(named, library);
        assert!(
            reason.contains("file too short") || reason.contains("invalid ELF header"),
            "{reason}"
        );
    }
}
