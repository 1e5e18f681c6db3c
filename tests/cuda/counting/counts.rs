//! Counts of the runtime that this process was started with.
#![allow(unsafe_code)]

use std::backtrace::Backtrace;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_long, CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libloading::os::unix::{Library, Symbol};

/// Everything since the last [`reset`].
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Kernels launched, without matrix products.
    pub launches: u64,
    /// Matrix products by cuBLAS.
    pub products: u64,
    /// Waits for the device.
    pub synchronisations: u64,
    /// Copies to the device from memory that is not pinned: a real device makes them wait.
    pub pageable_copies: u64,
    /// Copies to the device from pinned memory.
    pub pinned_copies: u64,
    /// Copies from the device, into any memory of the host.
    pub copies_back: u64,
    /// Launches of each kernel, by its name in the source, arguments included.
    pub kernels: BTreeMap<String, u64>,
    /// Calls by name. Products have the kind of their factors behind the name: `cublasGemmEx bf16`.
    pub calls: BTreeMap<String, u64>,
    /// Work that was captured in graphs, and not done: kernels, products and copies by name.
    pub captured: BTreeMap<String, u64>,
    /// Memory by device.
    pub devices: Vec<Memory>,
}

/// Memory that libtorch holds of one device, its cache included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes now.
    pub reserved: u64,
    /// The most bytes since the last [`reset`].
    pub peak: u64,
    /// Blocks taken from the device since the last [`reset`].
    pub blocks: u64,
}

impl Counts {
    /// The report that a program left in the file of `COUNTING_REPORT`.
    pub fn read(report: &Path) -> Counts {
        let text = std::fs::read_to_string(report)
            .unwrap_or_else(|error| panic!("'{}': {error}", report.display()));
        let mut counts = Counts::default();
        for line in text.lines() {
            let columns: Vec<&str> = line.split('\t').collect();
            let number = |at: usize| columns[at].parse::<u64>().expect("a number");
            match columns[0] {
                "call" => *counts.calls.entry(columns[2].to_owned()).or_default() += number(1),
                "kernel" => *counts.kernels.entry(columns[2].to_owned()).or_default() += number(1),
                "captured" => {
                    *counts.captured.entry(columns[2].to_owned()).or_default() += number(1)
                }
                "device" => counts.devices.push(Memory {
                    reserved: number(1),
                    peak: number(2),
                    blocks: number(3),
                }),
                _ => panic!("a line of another kind: {line}"),
            }
        }
        counts.launches = counts.kernels.values().sum();
        let sum = |is: &dyn Fn(&str) -> bool| {
            counts.calls.iter().filter(|(name, _)| is(name)).map(|(_, calls)| calls).sum()
        };
        counts.products = sum(&is_product);
        counts.synchronisations =
            sum(&|name| name.ends_with("Synchronize") || name == "cudaMemcpy");
        counts.pageable_copies = sum(&|name| name == "copy to the device, pageable");
        counts.pinned_copies = sum(&|name| name == "copy to the device, pinned");
        counts.copies_back = sum(&|name| name.starts_with("copy from the device"));
        counts
    }

    /// Launches of the kernels whose name contains this text.
    pub fn kernels_with(&self, text: &str) -> u64 {
        self.kernels.iter().filter(|(name, _)| name.contains(text)).map(|(_, count)| count).sum()
    }

    /// Calls whose name contains this text.
    pub fn calls_with(&self, text: &str) -> u64 {
        self.calls.iter().filter(|(name, _)| name.contains(text)).map(|(_, count)| count).sum()
    }
}

fn is_product(name: &str) -> bool {
    let name = name.to_lowercase();
    let name = name.split(' ').next().unwrap_or_default();
    name == "cublasltmatmul"
        || (name.starts_with("cublas") && (name.contains("gemm") || name.contains("gemv")))
}

/// Starts counting at zero. What is held of a device stays held, and its peak starts there.
pub fn reset() {
    let reset = symbol::<unsafe extern "C" fn()>("counting_reset");
    // SAFETY: void counting_reset(void), in runtime/counters.c.
    unsafe { reset() }
}

/// The counts since the last [`reset`].
pub fn counts() -> Counts {
    let file = tempfile::NamedTempFile::new().expect("a file for the report");
    let path = CString::new(file.path().as_os_str().as_bytes()).unwrap();
    let report = symbol::<unsafe extern "C" fn(*const c_char) -> c_int>("counting_report");
    // SAFETY: int counting_report(const char *), in runtime/counters.c; the path lives as long as the call.
    assert_ne!(unsafe { report(path.as_ptr()) }, 0, "the report could not be written");
    Counts::read(file.path())
}

/// Fails unless memory was taken of this device, and of no other.
pub fn only_device(index: usize) {
    for (at, memory) in counts().devices.iter().enumerate() {
        let used = (memory.peak, memory.blocks) != (0, 0);
        assert_eq!(
            used,
            at == index,
            "cuda:{at} has {memory:?}, expected memory of cuda:{index} only"
        );
    }
}

/// Lets each device run out of memory beyond this many bytes from now on; `None`: as it was started.
pub fn limit_memory(bytes: Option<u64>) {
    let limit = symbol::<unsafe extern "C" fn(usize)>("counting_limit_memory");
    // SAFETY: void counting_limit_memory(size_t), in runtime/memory.c.
    unsafe { limit(bytes.map_or(0, |bytes| bytes.try_into().unwrap())) }
}

/// Lets so many allocations on devices succeed from now on, and none after them; `None`: all.
pub fn fail_after(allocations: Option<u32>) {
    let fail = symbol::<unsafe extern "C" fn(c_long)>("counting_fail_after");
    // SAFETY: void counting_fail_after(long), in runtime/memory.c.
    unsafe { fail(allocations.map_or(-1, c_long::from)) }
}

/// Lets each launch by the driver fail with this error of CUDA from now on; `None`: none.
pub fn fail_launches(error: Option<i32>) {
    let fail = symbol::<unsafe extern "C" fn(c_int)>("counting_fail_launches");
    // SAFETY: void counting_fail_launches(int), in runtime/driver.c.
    unsafe { fail(error.unwrap_or(0)) }
}

/// Prints who waits for the device, and who copies from memory that is not pinned, with the lines of Rust.
pub(super) fn show_waits() {
    extern "C" fn show(name: *const c_char) {
        // SAFETY: runtime/counters.c gives a name, which is a literal.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        eprintln!("{name}, called by\n{}", Backtrace::force_capture());
    }
    let hook = symbol::<*mut extern "C" fn(*const c_char)>("counting_on_wait");
    // SAFETY: void (*counting_on_wait)(const char *), in runtime/counters.c; no other thread runs yet.
    unsafe { **hook = show }
}

fn symbol<T>(name: &str) -> Symbol<T> {
    // SAFETY: the callers state the functions' types, each beside its call.
    let found = unsafe { Library::this().get::<T>(name.as_bytes()) };
    found.unwrap_or_else(|_| panic!("{name}: this process runs without the counting runtime"))
}
