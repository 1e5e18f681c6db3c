//! Copies to a CUDA device on a stream of their own, beside what libtorch computes there.
//!
//! Tiles of the host's memory take turns in two places of the device: while one is computed with, the next is on its
//! way to the other. Events keep the order, on the device: a kernel waits for the copy, and the copy for the last
//! kernel that used its place. The host waits for neither.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, CStr};

use tch::{Device, Kind, Tensor};

use super::symbols::symbol;
use crate::error::{refusal, refuse, Result};

/// `cudaStreamNonBlocking`: it does not wait for the default stream, which libtorch computes on.
const NON_BLOCKING: c_uint = 1;
/// `cudaEventDisableTiming`.
const NO_TIMING: c_uint = 2;
/// `cudaMemcpyHostToDevice`.
const TO_DEVICE: c_int = 1;
/// The default stream, as a handle.
const DEFAULT: usize = 0;

/// Functions of the CUDA runtime that libtorch has loaded, found by name. Handles and addresses are numbers.
#[derive(Debug, Clone, Copy)]
struct Calls {
    get_device: unsafe extern "C" fn(*mut c_int) -> c_int,
    set_device: unsafe extern "C" fn(c_int) -> c_int,
    words: unsafe extern "C" fn(c_int) -> *const c_char,
    create_stream: unsafe extern "C" fn(*mut usize, c_uint) -> c_int,
    destroy_stream: unsafe extern "C" fn(usize) -> c_int,
    finish_stream: unsafe extern "C" fn(usize) -> c_int,
    create_event: unsafe extern "C" fn(*mut usize, c_uint) -> c_int,
    destroy_event: unsafe extern "C" fn(usize) -> c_int,
    record: unsafe extern "C" fn(usize, usize) -> c_int,
    wait: unsafe extern "C" fn(usize, usize, c_uint) -> c_int,
    copy: unsafe extern "C" fn(usize, usize, usize, c_int, usize) -> c_int,
    pin: unsafe extern "C" fn(usize, usize, c_uint) -> c_int,
    unpin: unsafe extern "C" fn(usize) -> c_int,
}

/// Tiles that take turns in two places of a device.
#[derive(Debug)]
pub(crate) struct Copies {
    calls: Calls,
    device: c_int,
    stream: usize,
    tiles: Vec<Tile>,
    places: [Place; 2],
}

/// Bytes of the host, pinned.
#[derive(Debug)]
struct Tile {
    bytes: Tensor,
    /// Pinned by us, not by libtorch.
    pinned: bool,
}

/// Room on the device for any of the tiles.
#[derive(Debug)]
struct Place {
    bytes: Tensor,
    holds: Option<usize>,
    /// The latest copy to here.
    filled: usize,
    /// The latest use of it.
    used: usize,
}

impl Calls {
    fn found() -> Result<Self> {
        // SAFETY: cudaGetDevice(int *), cudaSetDevice(int), cudaGetErrorString(cudaError_t),
        // cudaStreamCreateWithFlags(cudaStream_t *, unsigned), cudaStreamDestroy(cudaStream_t),
        // cudaStreamSynchronize(cudaStream_t), cudaEventCreateWithFlags(cudaEvent_t *, unsigned),
        // cudaEventDestroy(cudaEvent_t), cudaEventRecord(cudaEvent_t, cudaStream_t),
        // cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned),
        // cudaMemcpyAsync(void *, const void *, size_t, enum, cudaStream_t), cudaHostRegister(void *, size_t, unsigned)
        // and cudaHostUnregister(void *) keep these signatures in every version; streams, events and addresses are
        // pointers, as wide as usize. libtorch's runtime is never unloaded.
        unsafe {
            Ok(Calls {
                get_device: found("cudaGetDevice")?,
                set_device: found("cudaSetDevice")?,
                words: found("cudaGetErrorString")?,
                create_stream: found("cudaStreamCreateWithFlags")?,
                destroy_stream: found("cudaStreamDestroy")?,
                finish_stream: found("cudaStreamSynchronize")?,
                create_event: found("cudaEventCreateWithFlags")?,
                destroy_event: found("cudaEventDestroy")?,
                record: found("cudaEventRecord")?,
                wait: found("cudaStreamWaitEvent")?,
                copy: found("cudaMemcpyAsync")?,
                pin: found("cudaHostRegister")?,
                unpin: found("cudaHostUnregister")?,
            })
        }
    }

    /// Calls `f`, which gives an error code, while `device` is this thread's current device.
    fn on(&self, device: c_int, f: impl FnOnce() -> c_int + Send) -> c_int {
        let mut current = 0;
        // SAFETY: the pointer is to a live int.
        let code = unsafe { (self.get_device)(&mut current) };
        if code != 0 || current == device {
            return if code == 0 { f() } else { code };
        }
        // In a thread of its own: to set the device back would make a context on the former one.
        let other = || {
            // SAFETY: the device exists: tensors are on it.
            match unsafe { (self.set_device)(device) } {
                0 => f(),
                code => code,
            }
        };
        // cudaErrorUnknown, should that thread panic.
        std::thread::scope(|scope| scope.spawn(other).join()).unwrap_or(999)
    }

    fn check(&self, call: &str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the text is static and ends with a zero.
        let words = unsafe { CStr::from_ptr((self.words)(code)) };
        refuse!(Torch, "{call}: {}, error {code}", words.to_string_lossy())
    }
}

/// # Safety
/// `T` is a function pointer of the symbol's type.
unsafe fn found<T: Copy>(name: &str) -> Result<T> {
    // SAFETY: as the caller promises.
    unsafe { symbol(name) }.map_err(|_| {
        refusal!(
            Unsupported,
            "this process has no symbol '{name}' of the CUDA runtime, which streaming needs: link libtorch dynamically"
        )
    })
}

impl Copies {
    /// Pins the tiles, `u8` tensors of the host, and takes memory of the device for two of the largest.
    ///
    /// # Errors
    /// `Unsupported` where there is no CUDA; `OutOfMemory`; `Torch`.
    pub(crate) fn new(tiles: Vec<Tensor>, device: Device) -> Result<Self> {
        let Device::Cuda(index) = device else {
            refuse!(Unsupported, "{device:?} has no streams, expected a CUDA device");
        };
        let most = tiles.iter().map(Tensor::numel).max().unwrap_or(0) as i64;
        let place = || -> Result<Place> {
            let bytes = Tensor::f_empty([most], (Kind::Uint8, device))?;
            Ok(Place { bytes, holds: None, filled: 0, used: 0 })
        };
        let places = [place()?, place()?];
        let device = c_int::try_from(index).unwrap_or(0);
        let calls = Calls::found()?;
        let mut copies = Copies { calls, device, stream: 0, tiles: Vec::new(), places };
        // From here on, dropping undoes what was done.
        copies.create()?;
        for bytes in tiles {
            let tile = copies.pinned(bytes)?;
            copies.tiles.push(tile);
        }
        Ok(copies)
    }

    fn create(&mut self) -> Result<()> {
        let Copies { calls, device, stream, places, .. } = self;
        let calls = *calls;
        let [first, second] = places;
        let events = [&mut first.filled, &mut first.used, &mut second.filled, &mut second.used];
        // SAFETY: the pointers are to live handles; 0 stands for none.
        let code = calls.on(*device, || unsafe { (calls.create_stream)(stream, NON_BLOCKING) });
        calls.check("cudaStreamCreateWithFlags", code)?;
        for event in events {
            // SAFETY: as above.
            let code = calls.on(*device, || unsafe { (calls.create_event)(event, NO_TIMING) });
            calls.check("cudaEventCreateWithFlags", code)?;
        }
        // The memory of the places may still be in use by what had it before.
        (0..2).try_for_each(|place| self.used(place))
    }

    /// Pins memory where it is; where that fails, in a copy that libtorch pins.
    fn pinned(&self, bytes: Tensor) -> Result<Tile> {
        if bytes.numel() == 0 {
            return Ok(Tile { bytes, pinned: false });
        }
        let (start, length) = (bytes.data_ptr() as usize, bytes.numel());
        let pin = self.calls.pin;
        // SAFETY: the memory lives as long as the tile, which is unpinned before it is dropped.
        let code = self.calls.on(self.device, || unsafe { pin(start, length, 0) });
        if code == 0 {
            return Ok(Tile { bytes, pinned: true });
        }
        let index = usize::try_from(self.device).unwrap_or(0);
        let copy = bytes.f_internal_pin_memory(Device::Cuda(index))?;
        Ok(Tile { bytes: copy, pinned: false })
    }

    /// The bytes of a tile, on the host.
    pub(crate) fn tile(&self, tile: usize) -> &Tensor {
        &self.tiles[tile].bytes
    }

    /// Brings a tile to the device unless it is there or on its way, and lets everything that libtorch is asked for
    /// from now on wait for it, on the device. `keep` is the tile whose place is left alone. Gives the bytes there.
    pub(crate) fn enter(&mut self, tile: usize, keep: Option<usize>) -> Result<&Tensor> {
        self.bring(tile, keep)?;
        let place = self.place_of(tile).unwrap_or(0);
        let (calls, filled) = (self.calls, self.places[place].filled);
        // SAFETY: the event lives as long as this; the default stream always does.
        let code = calls.on(self.device, || unsafe { (calls.wait)(DEFAULT, filled, 0) });
        calls.check("cudaStreamWaitEvent", code)?;
        Ok(&self.places[place].bytes)
    }

    /// Says that all that uses a tile has been asked for: its place is free when that is done.
    pub(crate) fn leave(&mut self, tile: usize) -> Result<()> {
        self.place_of(tile).map_or(Ok(()), |place| self.used(place))
    }

    /// Begins to bring a tile to the device unless it is there or on its way, to the place that does not hold `keep`.
    pub(crate) fn bring(&mut self, tile: usize, keep: Option<usize>) -> Result<()> {
        if self.place_of(tile).is_some() {
            return Ok(());
        }
        let at = usize::from(self.places[0].holds.is_some() && self.places[0].holds == keep);
        let (calls, stream) = (self.calls, self.stream);
        let (place, from) = (&mut self.places[at], &self.tiles[tile].bytes);
        let (to, source, length) =
            (place.bytes.data_ptr() as usize, from.data_ptr() as usize, from.numel());
        let (used, filled) = (place.used, place.filled);
        place.holds = None;
        // SAFETY: the place is as long as the longest tile; both live until the stream is done, for which dropping
        // waits; and the copy waits for what was asked for before and uses the place.
        let codes = calls.on(self.device, || unsafe {
            match (calls.wait)(stream, used, 0) {
                0 => match (calls.copy)(to, source, length, TO_DEVICE, stream) {
                    0 => (calls.record)(filled, stream),
                    code => code,
                },
                code => code,
            }
        });
        calls.check("a copy on a stream of its own", codes)?;
        self.places[at].holds = Some(tile);
        Ok(())
    }

    fn place_of(&self, tile: usize) -> Option<usize> {
        self.places.iter().position(|place| place.holds == Some(tile))
    }

    /// All that libtorch has been asked for so far counts as a use of this place.
    fn used(&self, place: usize) -> Result<()> {
        let (calls, used) = (self.calls, self.places[place].used);
        // SAFETY: the event lives as long as this.
        let code = calls.on(self.device, || unsafe { (calls.record)(used, DEFAULT) });
        calls.check("cudaEventRecord", code)
    }
}

/// Waits for the copies, so that no memory is freed that they read or write.
impl Drop for Copies {
    fn drop(&mut self) {
        let (calls, stream) = (self.calls, self.stream);
        let events = self.places.iter().flat_map(|place| [place.filled, place.used]);
        let events: Vec<usize> = events.filter(|event| *event != 0).collect();
        let pinned = self.tiles.iter().filter(|tile| tile.pinned);
        let pinned: Vec<usize> = pinned.map(|tile| tile.bytes.data_ptr() as usize).collect();
        // SAFETY: each handle and each pinning is ours, and is given back once. An error changes nothing here.
        calls.on(self.device, || unsafe {
            if stream != 0 {
                (calls.finish_stream)(stream);
                (calls.destroy_stream)(stream);
            }
            for event in events {
                (calls.destroy_event)(event);
            }
            for start in pinned {
                (calls.unpin)(start);
            }
            0
        });
    }
}
