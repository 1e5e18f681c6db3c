//! Settings of libtorch that count for the whole process and that tch does not bind.

use std::env;
use std::sync::atomic::{AtomicBool, Ordering};

use super::context;
use crate::error::{refuse, Result};

/// The values of `CUBLAS_WORKSPACE_CONFIG` with which cuBLAS promises equal results.
const WORKSPACES: [&str; 2] = [":4096:8", ":16:8"];

/// True where this crate has set `CUBLAS_WORKSPACE_CONFIG`.
static SET_HERE: AtomicBool = AtomicBool::new(false);

/// Equal results from equal inputs, bit for bit, on CUDA too: sums whose order is left to chance there, such as those
/// in the backward pass of attention, are computed in a fixed order, which takes longer. The default is that of
/// libtorch: false. On the CPU all that this crate computes is deterministic anyhow.
///
/// It counts for the whole process, also for operations of your own; one that has no deterministic form then fails with
/// an error that names it. It sets `CUBLAS_WORKSPACE_CONFIG`, if that is not set, which cuBLAS reads at its first
/// product: call this first in `main`. While it is set, libtorch reads it anew for each product on CUDA, with a regular
/// expression: some 50 µs of the host, which short steps feel, and replays of a [`GraphedStep`](crate::GraphedStep) do
/// not. `set_deterministic(false)` takes away what was set here. New tensors stay uninitialised (`torch` would fill
/// them, to show who reads them too early).
///
/// Results are equal on the same kind of device with the same versions of libtorch and CUDA.
///
/// # Errors
/// `InvalidState` if `CUBLAS_WORKSPACE_CONFIG` has a value that is not deterministic; `Unsupported` if libtorch is
/// linked statically, or names its methods in another way.
///
/// ```
/// // In a process of its own, as documentation tests are.
/// use ln_tuning::device::set_deterministic;
/// let mut x = tch::Tensor::zeros([3], (tch::Kind::Float, tch::Device::Cpu));
/// let (place, value) = (tch::Tensor::from_slice(&[0_i64]), tch::Tensor::from_slice(&[1_f32]));
/// set_deterministic(true)?;
/// assert!(x.f_put_(&place, &value, false).is_err()); // an operation that has no deterministic form
/// set_deterministic(false)?;
/// assert!(x.f_put_(&place, &value, false).is_ok());
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[doc(alias = "use_deterministic_algorithms")]
pub fn set_deterministic(on: bool) -> Result<()> {
    let algorithms = context::setter_of_two("_ZN2at7Context26setDeterministicAlgorithmsEbb")?;
    let fill = context::setter("_ZN2at7Context39setDeterministicFillUninitializedMemoryEb")?;
    let name = "CUBLAS_WORKSPACE_CONFIG";
    if !on && SET_HERE.swap(false, Ordering::Relaxed) {
        env::remove_var(name);
    }
    if on {
        match env::var_os(name) {
            None => {
                env::set_var(name, WORKSPACES[0]);
                SET_HERE.store(true, Ordering::Relaxed);
            }
            Some(value) if WORKSPACES.iter().any(|known| value == *known) => (),
            Some(value) => refuse!(
                InvalidState,
                "{name} is {value:?}, with which products on CUDA may differ from run to run: unset it, or set it to \
                 {} or {}",
                WORKSPACES[0],
                WORKSPACES[1]
            ),
        }
    }
    fill(false);
    // Without a warning instead of an error: attention would stay as it is.
    algorithms(on, false);
    Ok(())
}

/// Lets CUDA multiply f32 matrices in TF32, with 10 bits of mantissa and several times the speed, on Ampere and newer.
/// Products in bf16 and f16, and on the CPU, do not change. It counts for the whole process, at any time.
///
/// # Errors
/// `Unsupported` if libtorch is linked statically, or names its methods in another way.
///
/// ```
/// ln_tuning::device::allow_tf32()?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[doc(alias = "set_float32_matmul_precision")]
pub fn allow_tf32() -> Result<()> {
    context::setter("_ZN2at7Context18setAllowTF32CuBLASEb")?(true);
    Ok(())
}
