//! The counting runtime shows what libtorch does.

use ln_tuning::device::{best_device, cuda_status, CudaStatus};
use tch::{Device, Kind, Tensor};

use crate::counting::{self, Gpu};

#[test]
fn launches_products_copies_waits_and_memory_are_counted() {
    Gpu::default().run(|| {
        let device = best_device();
        assert_eq!(device, Device::Cuda(0), "{}", cuda_status());
        let ones = Tensor::ones([1000, 1000], (Kind::BFloat16, device));
        counting::reset();
        let _ = Tensor::ones([10], (Kind::Float, device));
        let counts = counting::counts();
        assert_eq!((counts.launches, counts.products, counts.synchronisations), (1, 0, 0));
        assert_eq!(counts.kernels_with("FillFunctor<float>"), 1, "{:?}", counts.kernels);

        counting::reset();
        let _ = ones.matmul(&ones);
        let counts = counting::counts();
        assert_eq!(counts.products, 1, "{:?}", counts.calls);
        assert_eq!(counts.calls_with("bf16"), 1, "{:?}", counts.calls);

        counting::reset();
        let _ = Tensor::ones([10], (Kind::Float, Device::Cpu)).to_device(device);
        let counts = counting::counts();
        assert_eq!((counts.pageable_copies, counts.pinned_copies), (1, 0));
        assert_eq!(counts.synchronisations, 1);

        let pinned =
            Tensor::ones([10], (Kind::Float, Device::Cpu)).f_internal_pin_memory(device).unwrap();
        counting::reset();
        let _ = pinned.to_device_(device, Kind::Float, true, false);
        let counts = counting::counts();
        assert_eq!((counts.pageable_copies, counts.pinned_copies), (0, 1));
        assert_eq!(counts.synchronisations, 0);

        counting::reset();
        let _ = ones.double_value(&[3, 3]);
        let counts = counting::counts();
        assert_eq!((counts.copies_back, counts.synchronisations), (1, 1));

        let answers = ones.isfinite().all().int64_value(&[]) + ones.lt(0.).any().int64_value(&[]);
        assert_eq!(answers, 1, "all: yes, any: no");

        counting::reset();
        let _held = Tensor::zeros([100 << 20], (Kind::Uint8, device));
        let memory = counting::counts().devices[0];
        assert_eq!(memory.blocks, 1);
        assert!(memory.peak >= 100 << 20 && memory.reserved == memory.peak, "{memory:?}");
    });
}

#[test]
fn a_scan_of_one_row_ends() {
    Gpu::default().run(|| {
        let row = Tensor::ones([1, 16], (Kind::Int64, best_device()));
        counting::reset();
        let _ = row.cumsum(-1, None);
        assert_eq!(counting::counts().kernels_with("DeviceScanKernel"), 1);
    });
}

#[test]
fn devices_are_those_that_were_asked_for() {
    Gpu { sm: 89, devices: 2, memory: 1 << 30, ..Gpu::default() }.run(|| {
        assert_eq!(cuda_status(), CudaStatus::Available { devices: 2 });
        let second = Tensor::ones([10], (Kind::Float, Device::Cuda(1)));
        assert_eq!(second.device(), Device::Cuda(1));
        let counts = counting::counts();
        assert_eq!((counts.devices[0].blocks, counts.devices[1].blocks), (0, 1));

        let large = || Tensor::f_zeros([1 << 30], (Kind::Float, Device::Cuda(1)));
        let error = large().unwrap_err().to_string();
        assert!(error.contains("out of memory"), "{error}");
        counting::limit_memory(Some(8 << 30));
        assert_eq!(large().unwrap().device(), Device::Cuda(1));
    });
}

/// The words of a test that must fail.
fn failure(run: impl FnOnce() -> bool + std::panic::UnwindSafe) -> Option<String> {
    match std::panic::catch_unwind(run) {
        Ok(ran) => {
            assert!(!ran || counting::in_child(), "the test passed");
            None
        }
        Err(panic) => Some(panic.downcast_ref::<String>().unwrap().clone()),
    }
}

#[test]
fn a_process_that_fails_fails_its_test_with_its_output() {
    let failed = failure(|| {
        Gpu::default().run(|| {
            println!("the reason");
            std::process::exit(3);
        })
    });
    if let Some(text) = failed {
        assert!(text.contains("the reason") && text.contains("exit status: 3"), "{text}");
    }
}

#[test]
fn a_warning_of_libtorch_fails_the_test() {
    let failed = failure(|| {
        Gpu::default().run(|| {
            let _ = Tensor::from(1f32).f_pin_memory(best_device()).unwrap();
        })
    });
    if let Some(text) = failed {
        assert!(text.contains("standard error") && text.contains("Warning"), "{text}");
    }
}
