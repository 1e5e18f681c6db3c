//! The fused functions on CUDA: NVRTC compiles them, the driver launches them, and the same text compiled for the host
//! computes, thread by thread, what libtorch's operators do.

use ln_tuning::alone::{compiled, gated, norm, Gate, NormForm};
use ln_tuning::device::{best_device, without_fused_functions};
use tch::{Device, Kind, Tensor};

use crate::counting::{self, Gpu};
use crate::fused_checks::checks;

const KINDS: [Kind; 3] = [Kind::BFloat16, Kind::Half, Kind::Float];

/// Nothing of a kernel is kept in local memory, and NVRTC warns of nothing.
fn is_sound(capability: i64, kind: Kind) {
    let log = compiled(capability, kind).unwrap();
    let spills: Vec<&str> = log.lines().filter(|line| line.contains("spill")).collect();
    assert_eq!(spills.len(), 9, "a line for each kernel: {log}");
    let none = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
    assert!(spills.iter().all(|line| line.contains(none)), "sm_{capability}, {kind:?}: {log}");
    let words = log.to_lowercase();
    assert!(!words.contains("warning") && !words.contains("error"), "{log}");
}

#[test]
fn compute_on_a_device_what_operators_compute() {
    Gpu { computes: true, devices: 2, ..Gpu::default() }.run(|| {
        tch::manual_seed(1);
        let _ = best_device();
        for kind in KINDS {
            is_sound(90, kind);
            counting::reset();
            // The current device is another.
            let all = checks(Device::Cuda(1), kind).unwrap();
            assert!(all.len() > 80, "{}", all.len());
            for check in &all {
                assert!(check.off <= 1., "{}: {}", check.name, check.off);
            }
            let counts = counting::counts();
            for kernel in [
                "norm",
                "norm_backward",
                "norm_backward_with_bias",
                "norm_backward_of_long_rows",
                "total",
                "gated",
                "gated_backward",
                "rope",
                "cross_entropy",
            ] {
                let name = format!("ln_tuning_{kernel}_");
                assert!(counts.kernels_with(&name) > 0, "{kernel}: {:?}", counts.kernels);
            }
            assert_eq!(counts.synchronisations, counts.copies_back + counts.pageable_copies);
        }
        is_sound(80, Kind::BFloat16);
    });
}

/// Runs the body of the test that calls this as [`Gpu::run`] does, and gives what it writes to standard error.
fn errors_of(gpu: Gpu, test: &str, variable: (&str, &str), body: impl FnOnce()) -> Option<String> {
    if counting::in_child() {
        body();
        return None;
    }
    let mut command = gpu.command(&std::env::current_exe().unwrap())?;
    command.env("COUNTING_CHILD", "1").env(variable.0, variable.1);
    let output = command.args(["--exact", test, "--nocapture"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}{errors}", String::from_utf8_lossy(&output.stdout));
    Some(errors)
}

/// Nothing of ours is launched, and nothing fails.
fn operators_are_used() {
    let x = Tensor::ones([4, 64], (Kind::BFloat16, best_device()));
    for _ in 0..2 {
        let none = norm(&x, None, None, NormForm::Rms, 1e-6);
        assert!(none.unwrap().is_none());
    }
    assert_eq!(counting::counts().kernels_with("ln_tuning_"), 0);
}

#[test]
fn that_cannot_be_compiled_leave_the_work_to_operators_with_a_word() {
    let test = "fused::that_cannot_be_compiled_leave_the_work_to_operators_with_a_word";
    let nowhere = ("LN_TUNING_NVRTC", "/nowhere/libnvrtc.so");
    let Some(errors) = errors_of(Gpu::default(), test, nowhere, operators_are_used) else {
        return;
    };
    let begin = "warning: libtorch's operators are used instead of fused functions on CUDA: NVRTC";
    assert!(errors.starts_with(begin) && errors.contains("/nowhere/libnvrtc.so"), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    // A device that NVRTC knows no longer.
    let old = Gpu { sm: 30, ..Gpu::default() };
    let errors = errors_of(old, test, ("LN_TUNING_NVRTC", ""), || ()).unwrap();
    let reason = "compiles for no device as old as this one (3.0)";
    assert!(errors.starts_with(begin) && errors.contains(reason), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

#[test]
fn are_on_by_default_and_a_launch_that_fails_is_an_error() {
    Gpu::default().run(|| {
        let x = Tensor::ones([4, 64], (Kind::BFloat16, best_device()));
        let normed = || norm(&x, None, None, NormForm::Rms, 1e-6).unwrap();
        assert!(normed().is_some());
        assert!(without_fused_functions(normed).is_none());
        let gate = || gated(&x, &x, Gate::Silu);
        assert!(gate().unwrap().is_some());
        counting::fail_launches(Some(719));
        let error = gate().unwrap_err().to_string();
        assert!(error.contains("the launch of ln_tuning_gated_bf16 fails"), "{error}");
        assert!(error.contains("error 719"), "{error}");
        counting::fail_launches(None);
        assert!(gate().unwrap().is_some());
    });
}
