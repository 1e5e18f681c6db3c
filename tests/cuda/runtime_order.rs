//! The counting runtime shows work on several streams that does not wait where it must.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint};

use libloading::os::unix::Library;
use ln_tuning::device::best_device;
use tch::{Kind, Tensor};

use crate::counting::{self, Gpu};

const BEFORE_ITS_COPY: &str = "a product before its copy is there";
const OVER_WHAT_IS_READ: &str = "a copy over what may still be read";

/// Calls a function of the runtime, whose arguments are numbers and addresses.
macro_rules! call {
    ($name:literal, $($argument:expr => $kind:ty),*) => {{
        // SAFETY: the types are those of the CUDA runtime, as wide; addresses are of memory that lives.
        let code = unsafe {
            let found = Library::this().get::<unsafe extern "C" fn($($kind),*) -> c_int>($name);
            found.unwrap()($($argument),*)
        };
        assert_eq!(code, 0);
    }};
}

fn new_event() -> usize {
    let mut event = 0;
    call!(b"cudaEventCreateWithFlags", &mut event => *mut usize, 2 => c_uint);
    event
}

fn record(event: usize, stream: usize) {
    call!(b"cudaEventRecord", event => usize, stream => usize);
}

fn wait(stream: usize, event: usize) {
    call!(b"cudaStreamWaitEvent", stream => usize, event => usize, 0 => c_uint);
}

#[test]
fn a_copy_on_another_stream_that_nobody_waits_for_is_counted_and_one_that_is_waited_for_is_not() {
    Gpu::default().run(|| {
        let options = (Kind::BFloat16, best_device());
        let (weight, x) = (Tensor::ones([64, 64], options), Tensor::ones([64, 64], options));
        let host = Tensor::ones([64, 64], (Kind::BFloat16, tch::Device::Cpu));
        let mut stream = 0;
        call!(b"cudaStreamCreateWithFlags", &mut stream => *mut usize, 1 => c_uint);
        let (filled, used) = (new_event(), new_event());
        let copy = || {
            let (to, from) = (weight.data_ptr() as usize, host.data_ptr() as usize);
            call!(b"cudaMemcpyAsync", to => usize, from => usize, 8192 => usize, 1 => c_int, stream => usize);
        };
        let faults = |work: &dyn Fn()| {
            counting::reset();
            work();
            let counts = counting::counts();
            assert_eq!(counts.calls_with("what came beside the default stream"), 1);
            (counts.calls_with(BEFORE_ITS_COPY), counts.calls_with(OVER_WHAT_IS_READ))
        };
        let product = || drop(x.matmul(&weight));
        let nobody_waits = || {
            copy();
            product();
        };
        assert_eq!(faults(&nobody_waits), (1, 0));
        // The copy does not wait for the product above; the product below waits for the copy.
        let the_product_waits = || {
            copy();
            record(filled, stream);
            wait(0, filled);
            product();
        };
        assert_eq!(faults(&the_product_waits), (0, 1));
        let both_wait = || {
            record(used, 0);
            wait(stream, used);
            copy();
            record(filled, stream);
            wait(0, filled);
            product();
        };
        assert_eq!(faults(&both_wait), (0, 0));
        // An event of before the copy is none of it.
        let the_wrong_event = || {
            record(used, 0);
            wait(stream, used);
            record(filled, stream);
            copy();
            wait(0, filled);
            product();
        };
        assert_eq!(faults(&the_wrong_event), (1, 0));
    });
}
