//! `csrc/c10d.cpp` behind safe types. Errors are the messages of c10d.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_void, CStr, CString};
use std::ptr::{null, null_mut, NonNull};
use std::time::Duration;

use tch::Tensor;

use crate::error::border;

extern "C" {
    fn ln_c10d_free(memory: *mut c_void);
    fn ln_c10d_store_connect(
        host: *const c_char,
        port: u16,
        is_server: bool,
        timeout_ms: i64,
        store: *mut *mut c_void,
    ) -> *mut c_char;
    fn ln_c10d_store_free(store: *mut c_void);
    fn ln_c10d_store_set(
        store: *mut c_void,
        key: *const c_char,
        bytes: *const u8,
        length: usize,
    ) -> *mut c_char;
    fn ln_c10d_store_append(
        store: *mut c_void,
        key: *const c_char,
        bytes: *const u8,
        length: usize,
    ) -> *mut c_char;
    fn ln_c10d_store_get(
        store: *mut c_void,
        key: *const c_char,
        bytes: *mut *mut u8,
        length: *mut usize,
    ) -> *mut c_char;
    fn ln_c10d_gloo_new(
        store: *mut c_void,
        prefix: *const c_char,
        rank: i32,
        size: i32,
        address: *const c_char,
        timeout_ms: i64,
        backend: *mut *mut c_void,
    ) -> *mut c_char;
    fn ln_c10d_nccl_new(
        store: *mut c_void,
        prefix: *const c_char,
        rank: i32,
        size: i32,
        timeout_ms: i64,
        backend: *mut *mut c_void,
    ) -> *mut c_char;
    fn ln_c10d_gpu(index: i32, name: *mut c_char, length: i32);
    fn ln_c10d_backend_abort(backend: *mut c_void);
    fn ln_c10d_backend_free(backend: *mut c_void);
    fn ln_c10d_all_reduce(backend: *mut c_void, tensor: *mut c_void, operation: u8) -> *mut c_char;
    fn ln_c10d_broadcast(backend: *mut c_void, tensor: *mut c_void, root: i64) -> *mut c_char;
    fn ln_c10d_all_gather(
        backend: *mut c_void,
        input: *mut c_void,
        outputs: *mut *mut c_void,
        count: usize,
        work: *mut *mut c_void,
    ) -> *mut c_char;
    fn ln_c10d_work_wait(work: *mut c_void) -> *mut c_char;
}

type Result<T> = std::result::Result<T, String>;

/// The store of keys and values through which processes meet.
#[derive(Debug)]
pub(super) struct Store(NonNull<c_void>);

/// The connections between the processes of a group.
#[derive(Debug)]
pub(super) struct Backend(NonNull<c_void>);

// SAFETY: c10d locks both itself.
unsafe impl Send for Store {}
unsafe impl Sync for Store {}
unsafe impl Send for Backend {}
unsafe impl Sync for Backend {}

impl Store {
    /// Connects, after starting the server if this process is the one that has it.
    pub(super) fn connect(
        host: &str,
        port: u16,
        is_server: bool,
        timeout: Duration,
    ) -> Result<Self> {
        let (host, mut store) = (text(host)?, null_mut());
        // SAFETY: the text lives longer than the call, which sets `store` unless it fails.
        checked(unsafe {
            ln_c10d_store_connect(host.as_ptr(), port, is_server, millis(timeout), &mut store)
        })?;
        Ok(Store(NonNull::new(store).ok_or("no store")?))
    }

    pub(super) fn set(&self, key: &str, value: &str) -> Result<()> {
        let key = text(key)?;
        // SAFETY: all is read during the call.
        checked(unsafe {
            ln_c10d_store_set(self.0.as_ptr(), key.as_ptr(), value.as_ptr(), value.len())
        })
    }

    /// Adds to the end of a value, which need not be there yet.
    pub(super) fn append(&self, key: &str, value: &str) -> Result<()> {
        let key = text(key)?;
        // SAFETY: as above.
        checked(unsafe {
            ln_c10d_store_append(self.0.as_ptr(), key.as_ptr(), value.as_ptr(), value.len())
        })
    }

    /// A value, if it is there.
    pub(super) fn get(&self, key: &str) -> Result<Option<String>> {
        let (key, mut bytes, mut length) = (text(key)?, null_mut(), 0);
        // SAFETY: as above; what is made is so long and ours to free.
        unsafe {
            checked(ln_c10d_store_get(self.0.as_ptr(), key.as_ptr(), &mut bytes, &mut length))?;
            if bytes.is_null() {
                return Ok(None);
            }
            let value = std::slice::from_raw_parts(bytes, length);
            let value = String::from_utf8_lossy(value).into_owned();
            ln_c10d_free(bytes.cast());
            Ok(Some(value))
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made above, and freed once.
        unsafe { ln_c10d_store_free(self.0.as_ptr()) }
    }
}

impl Backend {
    /// Connects to all others by Gloo. Their keys in the store begin with `prefix`.
    pub(super) fn gloo(
        store: &Store,
        prefix: &str,
        (rank, size): (usize, usize),
        address: Option<&str>,
        timeout: Duration,
    ) -> Result<Self> {
        let (prefix, mut backend) = (text(prefix)?, null_mut());
        let address = address.map(text).transpose()?;
        // SAFETY: the texts live longer than the call, which sets `backend` unless it fails, and takes a share of the
        // store.
        checked(unsafe {
            ln_c10d_gloo_new(
                store.0.as_ptr(),
                prefix.as_ptr(),
                rank as i32,
                size as i32,
                address.as_ref().map_or(null(), |address| address.as_ptr()),
                millis(timeout),
                &mut backend,
            )
        })?;
        Ok(Backend(NonNull::new(backend).ok_or("no process group")?))
    }

    /// Connects the GPUs of all by NCCL, at its first operation.
    pub(super) fn nccl(
        store: &Store,
        prefix: &str,
        (rank, size): (usize, usize),
        timeout: Duration,
    ) -> Result<Self> {
        let (prefix, mut backend) = (text(prefix)?, null_mut());
        // SAFETY: as for Gloo.
        checked(unsafe {
            ln_c10d_nccl_new(
                store.0.as_ptr(),
                prefix.as_ptr(),
                rank as i32,
                size as i32,
                millis(timeout),
                &mut backend,
            )
        })?;
        Ok(Backend(NonNull::new(backend).ok_or("no process group")?))
    }

    /// Reduces in place. The tensor is contiguous and on the backend's device, and has the same size on all ranks:
    /// c10d ends the process otherwise.
    pub(super) fn all_reduce(&self, tensor: &mut Tensor, operation: u8) -> Result<()> {
        // SAFETY: c10d has written when it returns, and the tensor is borrowed for so long.
        checked(unsafe { ln_c10d_all_reduce(self.0.as_ptr(), pointer(tensor), operation) })
    }

    /// Ends operations that others may never answer, as far as the backend can; what comes after is an error.
    pub(super) fn abort(&self) {
        // SAFETY: as above.
        unsafe { ln_c10d_backend_abort(self.0.as_ptr()) }
    }

    /// Overwrites with the tensor of rank `root`; as for [`all_reduce`](Self::all_reduce).
    pub(super) fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<()> {
        // SAFETY: as above.
        checked(unsafe { ln_c10d_broadcast(self.0.as_ptr(), pointer(tensor), root as i64) })
    }

    /// Fills `outputs`, one per rank, of the input's size; as for [`all_reduce`](Self::all_reduce). This process does
    /// `meanwhile` while it waits for the others.
    pub(super) fn all_gather(
        &self,
        input: &Tensor,
        outputs: &mut [Tensor],
        meanwhile: impl FnOnce(),
    ) -> Result<()> {
        let mut pointers: Vec<*mut c_void> = outputs.iter().map(pointer).collect();
        let mut work = null_mut();
        // SAFETY: as above. What is begun has shares of all tensors, and is waited for once.
        checked(unsafe {
            ln_c10d_all_gather(
                self.0.as_ptr(),
                pointer(input),
                pointers.as_mut_ptr(),
                pointers.len(),
                &mut work,
            )
        })?;
        meanwhile();
        checked(unsafe { ln_c10d_work_wait(work) })
    }
}

/// The name of a GPU that no other of its machine has, by whatever number processes see it.
pub(super) fn gpu(index: usize) -> String {
    let mut name = [0 as c_char; 64];
    // SAFETY: writes a text of at most that length, with a zero at its end.
    let name = unsafe {
        ln_c10d_gpu(index as i32, name.as_mut_ptr(), name.len() as i32);
        CStr::from_ptr(name.as_ptr())
    };
    if name.is_empty() {
        return index.to_string();
    }
    name.to_string_lossy().into_owned()
}

impl Drop for Backend {
    fn drop(&mut self) {
        // SAFETY: made above, and freed once.
        unsafe { ln_c10d_backend_free(self.0.as_ptr()) }
    }
}

fn pointer(tensor: &Tensor) -> *mut c_void {
    tensor.as_ptr().cast_mut().cast()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).max(1)
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| format!("{text:?} has a zero byte in it"))
}

fn checked(message: *mut c_char) -> Result<()> {
    // SAFETY: it comes from `csrc`.
    unsafe { border::text(message) }.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::load_cuda;

    #[test]
    fn nccl_says_what_it_lacks() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let time = Duration::from_secs(30);
        let store = Store::connect("127.0.0.1", port, true, time).unwrap();
        let reason = || Backend::nccl(&store, "nccl", (0, 1), time).map(drop).unwrap_err();
        if tch::Cuda::device_count() > 0 {
            return;
        }
        assert!(load_cuda().is_ok() || reason().contains("is not loaded"));
        if load_cuda().is_ok() {
            let reason = reason();
            assert!(reason.contains("no GPUs found"), "{reason}");
        }
        // The store is as before.
        store.set("key", "value").unwrap();
        assert_eq!(store.get("key").unwrap().as_deref(), Some("value"));
        assert_eq!(store.get("another").unwrap(), None);
    }
}
