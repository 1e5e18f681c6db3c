//! CUDA graphs: what is asked of a device is captured once, and replayed as one (`csrc/cuda_graph.cpp`).
#![allow(unsafe_code)]

use std::ffi::{c_char, c_void};
use std::ptr::{null_mut, NonNull};

use tch::{Device, Kind, Tensor};

use crate::error::border::checked;
use crate::error::{refusal, refuse, Result};

extern "C" {
    fn ln_tuning_stream_new(device: i64, stream: *mut i64) -> *mut c_char;
    fn ln_tuning_stream_enter(stream: *const i64, before: *mut i64) -> *mut c_char;
    fn ln_tuning_stream_leave(stream: *const i64, before: *const i64) -> *mut c_char;
    fn ln_tuning_graph_begin(
        device: i64,
        beside: *mut c_void,
        graph: *mut *mut c_void,
    ) -> *mut c_char;
    fn ln_tuning_graph_end(device: i64, graph: *mut c_void) -> *mut c_char;
    fn ln_tuning_graph_replay(graph: *mut c_void) -> *mut c_char;
    fn ln_tuning_graph_free(graph: *mut c_void) -> *mut c_char;
}

/// A stream of a device beside the default one: only beside it can work be captured.
#[derive(Debug)]
pub(crate) struct SideStream {
    device: i64,
    stream: [i64; 3],
}

/// Work that was asked of a device while it was captured.
#[derive(Debug)]
pub(crate) struct Graph(NonNull<c_void>);

/// The side stream while it is the current one of this thread, and the stream before it.
struct Entered<'s>(&'s SideStream, [i64; 4]);

impl SideStream {
    /// # Errors
    /// `Unsupported` for another device than one of CUDA.
    pub(crate) fn new(device: Device) -> Result<Self> {
        let Device::Cuda(index) = device else {
            refuse!(Unsupported, "{device:?} has no streams, expected a CUDA device");
        };
        let device = index as i64;
        let mut stream = [0; 3];
        // SAFETY: the pointer is to three numbers.
        unsafe { checked(ln_tuning_stream_new(device, stream.as_mut_ptr())) }?;
        Ok(SideStream { device, stream })
    }

    /// Lets what `f` asks of the device go there, in its order with all that was asked before and comes after.
    pub(crate) fn run<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let entered = self.enter()?;
        let result = f();
        drop(entered);
        result
    }

    /// Captures what `f` asks of the device, which does none of it. Memory that it takes is the graph's, or shared with
    /// `beside`. Waits for the device before.
    ///
    /// # Errors
    /// Those of `f`; `Unsupported` for another libtorch, or if `f` does what cannot be captured, such as waiting for the
    /// device; `OutOfMemory`.
    pub(crate) fn capture<T>(
        &self,
        beside: Option<&Graph>,
        f: impl FnOnce() -> Result<T>,
    ) -> Result<(Graph, T)> {
        /// Ends the capture, also where `f` panics.
        struct Capturing(i64, *mut c_void);
        impl Capturing {
            fn end(&mut self) -> Result<Option<Graph>> {
                let Some(graph) = NonNull::new(std::mem::replace(&mut self.1, null_mut())) else {
                    return Ok(None);
                };
                // SAFETY: the graph is one that is being captured. One that fails is left alone: see `cuda_graph.cpp`.
                unsafe { checked(ln_tuning_graph_end(self.0, graph.as_ptr())) }?;
                Ok(Some(Graph(graph)))
            }
        }
        impl Drop for Capturing {
            fn drop(&mut self) {
                let _ = self.end();
            }
        }
        let _entered = self.enter()?;
        let beside = beside.map_or(null_mut(), |graph| graph.0.as_ptr());
        let mut capturing = Capturing(self.device, null_mut());
        // SAFETY: `beside` is null or a graph that was captured; the last pointer is to a live one.
        unsafe { checked(ln_tuning_graph_begin(self.device, beside, &mut capturing.1)) }?;
        let made = f();
        if made.is_err() {
            // libtorch warns of a graph that is empty.
            let _ = Tensor::f_zeros([1], (Kind::Float, Device::Cuda(self.device as usize)));
        }
        let ended = capturing.end();
        // The first error is the cause of the other.
        let made = made?;
        match ended {
            Ok(Some(graph)) => Ok((graph, made)),
            Ok(None) => Err(refusal!(Unsupported, "libtorch has captured nothing")),
            Err(error) => Err(error),
        }
    }

    fn enter(&self) -> Result<Entered<'_>> {
        let mut before = [0; 4];
        // SAFETY: the pointers are to as many numbers as the function reads and writes.
        unsafe { checked(ln_tuning_stream_enter(self.stream.as_ptr(), before.as_mut_ptr())) }?;
        Ok(Entered(self, before))
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // SAFETY: as in `enter`. It fails only where CUDA itself has failed, and then everything does.
        let _ = unsafe { checked(ln_tuning_stream_leave(self.0.stream.as_ptr(), self.1.as_ptr())) };
    }
}

impl Graph {
    /// Asks the device for all of it, behind what was asked before.
    pub(crate) fn replay(&self) -> Result<()> {
        // SAFETY: the graph was captured, and lives.
        Ok(unsafe { checked(ln_tuning_graph_replay(self.0.as_ptr())) }?)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the graph is freed once.
        let _ = unsafe { checked(ln_tuning_graph_free(self.0.as_ptr())) };
    }
}
