//! cuDNN's attention, which is faster than flash attention on Hopper and newer, but builds a plan for each new shape: a
//! tenth of a second on an H100, and some seconds for the first one of a process, for which cuDNN is loaded.
// Models ask.
#![cfg_attr(not(feature = "models"), allow(dead_code))]

use std::collections::HashMap;
use std::env;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use tch::{no_grad, Kind, Tensor};

use super::context;
use super::grad_mode::is_recorded;
use super::transfer::{is_captured, is_to_be_captured};
use crate::error::{Error, Result};

/// The user's word on cuDNN's attention, which libtorch reads at its first attention on CUDA.
const VARIABLE: &str = "TORCH_CUDNN_SDPA_DEPRIORITIZED";

/// `void at::Context::setSDPUseCuDNN(bool)`.
const SETTER: &str = "_ZN2at7Context14setSDPUseCuDNNEb";

/// So many calls of one shape save what its plan takes: a tenth of a millisecond each, forward and backward (H100, four
/// rows of 768 tokens, 24 heads of 128).
const WORTH: u32 = 1_000;
/// The same for the first plan of a process: less than it takes, since long runs are far longer.
const WORTH_FIRST: u32 = 10_000;

/// Shorter rows gain nothing.
const SHORTEST: i64 = 256;

/// Batches of ever new lengths must not fill the memory.
const MOST_SHAPES: usize = 4096;

/// Device, kind, sizes of queries, keys and values, causal: what a plan is for, as far as calls differ in it.
type Shape = (tch::Device, Kind, [(i64, i64, i64, i64); 3], bool);

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// So many calls have come.
    Seen(u32),
    /// The plans are there.
    Planned,
    /// cuDNN has none.
    Refused,
}

struct Choice {
    /// False where the user, or libtorch's variable, has chosen.
    is_ours: bool,
    /// True once there is a plan.
    has_begun: bool,
    shapes: Option<HashMap<Shape, State>>,
}

static CHOICE: Mutex<Choice> =
    Mutex::new(Choice { is_ours: false, has_begun: false, shapes: None });
static DEFAULTS: Once = Once::new();

fn choice() -> MutexGuard<'static, Choice> {
    CHOICE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The settings of this crate, once: before its first attention on CUDA.
pub(crate) fn apply_defaults() {
    DEFAULTS.call_once(|| {
        if env::var_os(VARIABLE).is_none() {
            // A libtorch without this method is only slower.
            if let Ok(set) = context::setter(SETTER) {
                set(false);
                choice().is_ours = true;
            }
        }
    });
}

/// Lets attention on CUDA use cuDNN, or not, whatever the shapes. On Hopper and newer, libtorch would take cuDNN before
/// all else. But that builds a plan for each new shape, which takes a tenth of a second to some seconds: for each new
/// length of a batch, and in generation for each new token.
///
/// So by itself this crate uses flash attention, and cuDNN for a shape that comes again and again: in training, without
/// a mask but the causal one, after 10,000 calls, a thousand if it is not the first such shape, and in the steps of a
/// [`GraphedStep`](crate::GraphedStep). A step of four rows of 768 tokens (Llama-3.2-3B, bf16, H100) takes 75 ms with
/// cuDNN and 79 without. While [`set_deterministic`](super::set_deterministic) is on, libtorch does not use it.
///
/// The environment variable `TORCH_CUDNN_SDPA_DEPRIORITIZED` (0 or 1) is libtorch's own: where it is set, the crate
/// leaves the choice to it until this function is called. It counts for the whole process, at any time.
///
/// # Errors
/// `Unsupported` if libtorch is linked statically, or names its methods in another way.
///
/// ```
/// ln_tuning::device::set_cudnn_attention(true)?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[doc(alias = "enable_cudnn_sdp")]
pub fn set_cudnn_attention(on: bool) -> Result<()> {
    let set = context::setter(SETTER)?;
    // The default must not come later and undo this.
    DEFAULTS.call_once(|| ());
    choice().is_ours = false;
    set(on);
    Ok(())
}

/// cuDNN's attention as long as this lives.
pub(crate) struct Turned(());

impl Turned {
    fn on() -> Option<Self> {
        context::setter(SETTER).ok()?(true);
        Some(Turned(()))
    }
}

impl Drop for Turned {
    fn drop(&mut self) {
        // The user may have chosen in the meantime, in another thread.
        if choice().is_ours {
            if let Ok(set) = context::setter(SETTER) {
                set(false);
            }
        }
    }
}

/// Turns cuDNN's attention on for the next call, without a mask, if plans for it pay; `attend` is the call. Two threads
/// may turn it on and off for each other, which costs time only.
pub(crate) fn where_it_pays(
    [q, k, v]: [&Tensor; 3],
    causal: bool,
    attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Option<Turned>> {
    let kind = q.f_kind()?;
    if !matches!(kind, Kind::BFloat16 | Kind::Half) || !choice().is_ours {
        return Ok(None);
    }
    if ![q, k, v].into_iter().map(is_recorded).collect::<Result<Vec<_>>>()?.contains(&true) {
        return Ok(None);
    }
    let sizes = [q.size4()?, k.size4()?, v.size4()?];
    if sizes[0].2 < SHORTEST {
        return Ok(None);
    }
    let shape = (q.device(), kind, sizes, causal);
    match come(shape) {
        (State::Planned, _) => return Ok(Turned::on()),
        (State::Seen(count), worth)
            if !is_captured() && (count >= worth || is_to_be_captured()) => {}
        _ => return Ok(None),
    }
    let Some(turned) = Turned::on() else { return Ok(None) };
    // Apart from the step, whose backward pass must not find out that cuDNN has no plan.
    let plans = || -> Result<()> {
        let apart = |x: &Tensor| Ok::<_, Error>(x.f_detach()?.f_set_requires_grad(true)?);
        let all = [apart(q)?, apart(k)?, apart(v)?];
        let y = attend(&all[0], &all[1], &all[2])?;
        let sum = no_grad(|| y.f_ones_like())?.f_mul(&y)?.f_sum(Kind::Float)?;
        Tensor::f_run_backward(&[sum], &all, false, false)?;
        Ok(())
    };
    let state = if plans().is_ok() { State::Planned } else { State::Refused };
    set(shape, state);
    Ok((state == State::Planned).then_some(turned))
}

/// The state of a shape that has come once more, and the calls that are worth its plan.
fn come(shape: Shape) -> (State, u32) {
    let mut choice = choice();
    let worth = if choice.has_begun { WORTH } else { WORTH_FIRST };
    let shapes = choice.shapes.get_or_insert_default();
    if shapes.len() >= MOST_SHAPES && !shapes.contains_key(&shape) {
        shapes.retain(|_, state| !matches!(state, State::Seen(_)));
    }
    let state = shapes.entry(shape).or_insert(State::Seen(0));
    if let State::Seen(count) = state {
        *count = count.saturating_add(1);
    }
    (*state, worth)
}

fn set(shape: Shape, state: State) {
    let mut choice = choice();
    choice.has_begun |= state == State::Planned;
    choice.shapes.get_or_insert_default().insert(shape, state);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_made_for_shapes_that_come_often_and_the_first_one_waits_longest() {
        let shape = |n| (tch::Device::Cpu, Kind::BFloat16, [(n, n, n, n); 3], true);
        let calls = |shape| {
            let counted = (1..).find(|_| {
                let (state, worth) = come(shape);
                matches!(state, State::Seen(count) if count >= worth)
            });
            counted.unwrap()
        };
        assert_eq!(calls(shape(1)), WORTH_FIRST);
        set(shape(1), State::Planned);
        assert_eq!(come(shape(1)).0, State::Planned);
        assert_eq!(calls(shape(2)), WORTH);
        set(shape(2), State::Refused);
        // Shapes that never come again do not push plans out.
        for length in 3..2 * MOST_SHAPES as i64 {
            come(shape(length));
        }
        assert_eq!([1, 2].map(|length| come(shape(length)).0), [State::Planned, State::Refused]);
        assert!(choice().shapes.as_ref().unwrap().len() <= MOST_SHAPES);
    }
}
