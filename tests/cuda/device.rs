//! CUDA is found, whatever came first.

use ln_tuning::device::{allow_tf32, best_device, cuda_status, CudaStatus};
use tch::{nn, Cuda, Device, Kind, Tensor};

use crate::counting::{self, Gpu};

/// A step on the device works, too: the backward pass has a thread for it.
fn the_device_is_cuda() {
    assert_eq!(best_device(), Device::Cuda(0), "{}", cuda_status());
    assert_eq!(cuda_status(), CudaStatus::Available { devices: 1 });
    let x = Tensor::ones([4], (Kind::Float, Device::Cuda(0))).set_requires_grad(true);
    x.square().sum(Kind::Float).backward();
    assert_eq!(x.grad().device(), Device::Cuda(0));
}

#[test]
fn the_best_device_is_cuda_after_a_seed() {
    Gpu::default().run(|| {
        tch::manual_seed(42);
        the_device_is_cuda();
        counting::reset();
        tch::manual_seed(42);
        let _ = Tensor::randn([4], (Kind::Float, Device::Cuda(0)));
        assert_eq!(counting::counts().kernels_with("normal"), 1);
    });
}

#[test]
fn the_best_device_is_cuda_after_a_backward_pass_on_the_cpu() {
    Gpu::default().run(|| {
        let x = Tensor::ones([4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        x.square().sum(Kind::Float).backward();
        the_device_is_cuda();
    });
}

#[test]
fn the_best_device_is_cuda_after_variables_and_random_numbers_on_the_cpu() {
    Gpu::default().run(|| {
        let vs = nn::VarStore::new(Device::Cpu);
        let linear = nn::linear(vs.root(), 4, 4, nn::LinearConfig::default());
        let _ = Tensor::randn([4, 4], (Kind::Float, Device::Cpu)).apply(&linear).softmax(-1, None);
        the_device_is_cuda();
    });
}

#[test]
fn the_best_device_is_cuda_after_every_question_about_it() {
    Gpu::default().run(|| {
        assert!(Cuda::is_available());
        assert_eq!(Cuda::device_count(), 1);
        assert_eq!(Device::cuda_if_available(), Device::Cuda(0));
        the_device_is_cuda();
    });
}

/// A program may still choose its devices in `main`, and takes no memory of one that it does not use.
#[test]
fn loading_before_main_asks_the_driver_and_the_devices_for_nothing() {
    Gpu::default().run(|| {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.contains("libtorch_cuda.so"), "it is loaded");
        let counts = counting::counts();
        assert!(counts.calls.is_empty() && counts.launches == 0, "{counts:?}");
        the_device_is_cuda();
        assert!(counting::counts().calls_with("cudaGetDeviceCount") > 0);
    });
}

#[test]
fn tf32_is_allowed_from_the_call_on_whatever_came_first() {
    Gpu::default().run(|| {
        tch::manual_seed(42);
        let ones = Tensor::ones([64, 64], (Kind::Float, best_device()));
        let products_in_tf32 = || {
            counting::reset();
            let _ = ones.matmul(&ones);
            counting::counts().calls_with("TF32")
        };
        assert_eq!(products_in_tf32(), 0);
        allow_tf32().unwrap();
        assert_eq!(products_in_tf32(), 1);
    });
}

#[test]
fn a_driver_without_a_device_leaves_all_on_the_cpu_and_says_so() {
    Gpu { devices: 0, ..Gpu::default() }.run(|| {
        tch::manual_seed(42);
        assert_eq!(best_device(), Device::Cpu);
        assert_eq!(cuda_status(), CudaStatus::NoDevice);
        let x = Tensor::ones([4], (Kind::Float, best_device())).set_requires_grad(true);
        x.square().sum(Kind::Float).backward();
        assert_eq!(x.grad(), Tensor::from_slice(&[2f32; 4]));
    });
}
