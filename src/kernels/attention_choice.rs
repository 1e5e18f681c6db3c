//! The fastest ways to attention in bf16 on this machine, measured once.
//!
//! libtorch's fused kernel gives products in bf16 to MKL, which converts them to f32 on many processors; products of all
//! scores at once go to oneDNN.

use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::kernels::attention::{attend, fused};
use crate::kernels::choice::Choice;
use crate::kernels::fused::is_for;
use crate::kernels::processor::{mkl_is_slow, multiplies_fast};

/// The longest sequence whose scores may stand in memory at once. They are kept for the backward pass and grow with the
/// square of the length: up to here they are a small part of what a block keeps.
const LONGEST: i64 = 512;
const SHORTEST: i64 = 32;

/// With fewer keys, one query's attention takes as long each way.
const MANY_KEYS: i64 = 64;

const SCALE: f64 = 0.125;

/// A way to attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttentionWay {
    /// libtorch's fused kernel.
    Fused,
    /// [`attend`].
    Products,
    /// libtorch's fused kernel, on copies in f32.
    InF32,
}

/// The way for queries `[batch, heads, length, head_dim]` and keys, without dropout. `one`: the queries are those of one
/// place, of a group of heads perhaps. Attention in f32 always takes the fused kernel: products were not clearly faster
/// where they were measured, and keep more.
///
/// # Errors
/// `InvalidArgument` for values of `LN_TUNING_BF16_ATTENTION` and `LN_TUNING_BF16_QUERY` that are no way.
pub(crate) fn way(q: &Tensor, k: &Tensor, one: bool) -> Result<AttentionWay> {
    if q.device() != Device::Cpu || q.f_kind()? != Kind::BFloat16 {
        return Ok(AttentionWay::Fused);
    }
    let (length, keys) = (q.size4()?.2, k.size4()?.2);
    if one && keys >= MANY_KEYS {
        return for_one_place(length > 1);
    }
    if !one && length == keys && (SHORTEST..=LONGEST).contains(&length) {
        return for_sequences(is_for(q)?);
    }
    Ok(AttentionWay::Fused)
}

/// `whole`: [`attend`] is one function of this crate, not several of libtorch's.
fn for_sequences(whole: bool) -> Result<AttentionWay> {
    static FASTEST: [OnceLock<AttentionWay>; 2] = [const { OnceLock::new() }; 2];
    let fastest = &FASTEST[usize::from(whole)];
    match fastest.get() {
        Some(fastest) => Ok(*fastest),
        None => of_sequences(whole).once(fastest, sequences),
    }
}

fn of_sequences(whole: bool) -> Choice<'static, AttentionWay> {
    let mut ways = vec![("fused", AttentionWay::Fused)];
    if multiplies_fast(Kind::BFloat16, Device::Cpu) {
        ways.push(("products", AttentionWay::Products));
    }
    let guess = if mkl_is_slow() { ways.len() - 1 } else { 0 };
    let kept = if whole { "bf16-attention" } else { "bf16-attention-of-operators" };
    Choice { variable: "LN_TUNING_BF16_ATTENTION", kept, ways, guess }
}

/// One query of each head of the keys, or a group of them: libtorch has other products for a single row.
fn for_one_place(group: bool) -> Result<AttentionWay> {
    static FASTEST: [OnceLock<AttentionWay>; 2] = [const { OnceLock::new() }; 2];
    let fastest = &FASTEST[usize::from(group)];
    match fastest.get() {
        Some(fastest) => Ok(*fastest),
        None => of_one_place(group).once(fastest, || one_place(group)),
    }
}

fn of_one_place(group: bool) -> Choice<'static, AttentionWay> {
    let ways = vec![("bf16", AttentionWay::Fused), ("f32", AttentionWay::InF32)];
    let guess = usize::from(mkl_is_slow() && !group);
    let kept = if group { "bf16-query-group" } else { "bf16-query" };
    Choice { variable: "LN_TUNING_BF16_QUERY", kept, ways, guess }
}

/// The fused kernel on copies in f32.
pub(crate) fn in_f32(
    [q, k, v]: [&Tensor; 3],
    fused: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let wide = |x: &Tensor| x.f_to_kind(Kind::Float);
    Ok(fused(&wide(q)?, &wide(k)?, &wide(v)?)?.f_to_kind(q.f_kind()?)?)
}

/// Queries, keys and values as layers make them, of so many heads that each thread has work.
fn inputs(length: i64, keys: i64) -> Result<[Tensor; 3]> {
    let heads = i64::from(tch::get_num_threads()).max(4);
    let make = |length: i64| -> Result<Tensor> {
        let all = Tensor::f_ones([1, length, heads, 64], (Kind::BFloat16, Device::Cpu))?;
        Ok(all.f_transpose(1, 2)?)
    };
    Ok([make(length)?, make(keys)?, make(keys)?])
}

/// A causal sequence forwards and backwards. The operators of the backward pass are called by themselves: autograd's
/// first pass would settle that there is no CUDA, where that is not loaded yet.
fn sequences() -> Result<impl FnMut(AttentionWay) -> Result<[Tensor; 4]>> {
    let [q, k, v] = inputs(128, 128)?;
    let upstream = q.f_contiguous()?;
    let rows = |x: &Tensor| -> Result<Tensor> { Ok(x.f_flatten(0, 1)?) };
    let [queries, keys, values, given] = [rows(&q)?, rows(&k)?, rows(&v)?, rows(&upstream)?];
    let weights = queries.f_bmm(&keys.f_transpose(1, 2)?)?.f_softmax(-1, None)?;
    let kind = weights.f_kind()?;
    let products = move || {
        let gradient = given.f_bmm(&values.f_transpose(1, 2)?)?;
        let gradient = Tensor::f_internal_softmax_backward_data(&gradient, &weights, -1, kind)?;
        Ok::<_, Error>([
            gradient.f_bmm(&keys)?,
            gradient.f_transpose(1, 2)?.f_bmm(&queries)?,
            weights.f_transpose(1, 2)?.f_bmm(&given)?,
        ])
    };
    Ok(move |way: AttentionWay| {
        if way == AttentionWay::Products {
            let attended = attend(&q, &k, &v, None, true, SCALE)?;
            let [q, k, v] = products()?;
            return Ok([attended, q, k, v]);
        }
        let none = None::<&Tensor>;
        let (attended, sums) = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(
            &q, &k, &v, 0., true, none, SCALE,
        )?;
        let (q, k, v) = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward(
            &upstream, &q, &k, &v, &attended, &sums, 0., true, none, SCALE,
        )?;
        Ok([attended, q, k, v])
    })
}

fn one_place(group: bool) -> Result<impl FnMut(AttentionWay) -> Result<Tensor>> {
    let [q, k, v] = inputs(if group { 4 } else { 1 }, 512)?;
    let attend = |q: &Tensor, k: &Tensor, v: &Tensor| fused(q, k, v, None, 0., false, SCALE);
    Ok(move |way: AttentionWay| match way {
        AttentionWay::InF32 => in_f32([&q, &k, &v], attend),
        _ => attend(&q, &k, &v),
    })
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn measurements_give_the_same_choices_each_time() {
        let all = || {
            let sequences = [true, false].map(|whole| of_sequences(whole).by(None, sequences));
            let places =
                [true, false].map(|group| of_one_place(group).by(None, || one_place(group)));
            sequences.into_iter().chain(places).collect::<Result<Vec<_>>>().unwrap()
        };
        let first = all();
        assert_eq!([(); 3].map(|()| all()), [(); 3].map(|()| first.clone()));
    }

    #[test]
    fn measurements_can_be_left_out() {
        let sequences = |wish: &str| of_sequences(true).by(Some(wish), sequences);
        let place = |wish: &str| of_one_place(true).by(Some(wish), || one_place(true));
        assert_eq!(sequences("fused").unwrap(), AttentionWay::Fused);
        assert_eq!(place("bf16").unwrap(), AttentionWay::Fused);
        assert_eq!(place("f32").unwrap(), AttentionWay::InF32);
        let message = place("f16").unwrap_err().to_string();
        assert!(message.contains("LN_TUNING_BF16_QUERY is 'f16', expected 'bf16' or 'f32'"));
        let message = sequences("flash").unwrap_err().to_string();
        assert!(message.contains("LN_TUNING_BF16_ATTENTION is 'flash', expected 'fused'"));
    }

    /// A process of its own for each value, since a choice stands for the whole process.
    #[test]
    fn the_variables_decide() {
        const CHILD: &str = "LN_TUNING_CHILD_OF_CHOICES";
        let make = |length: i64| Tensor::zeros([1, 2, length, 8], (Kind::BFloat16, Device::Cpu));
        let ways = || {
            let ways = [way(&make(40), &make(40), false), way(&make(1), &make(64), true)];
            let found = ways.map(|way| match way {
                Ok(way) => format!("{way:?}"),
                Err(error) => error.to_string(),
            });
            found.map(|text| text.split(' ').next().unwrap_or_default().to_owned())
        };
        if let Ok(expected) = env::var(CHILD) {
            assert_eq!(ways().join(", "), expected);
            return;
        }
        let start = |(values, expected): ([&str; 2], &str)| {
            let mut child = Command::new(env::current_exe().unwrap());
            child.args(["--exact", "kernels::attention_choice::tests::the_variables_decide"]);
            child.env("LN_TUNING_BF16_ATTENTION", values[0]);
            child.env("LN_TUNING_BF16_QUERY", values[1]).env(CHILD, expected);
            child.stdout(Stdio::null()).spawn().unwrap()
        };
        let children = [
            (["fused", "bf16"], "Fused, Fused"),
            (["fused", "f32"], "Fused, InF32"),
            (["flash", "fast"], "LN_TUNING_BF16_ATTENTION, LN_TUNING_BF16_QUERY"),
        ]
        .map(start);
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
    }

    /// Both ways of a measurement compute the same: it compares like with like.
    #[test]
    fn both_ways_that_are_measured_compute_the_same() {
        let close = |a: &Tensor, b: &Tensor| {
            assert_eq!(a.size(), b.size());
            a.to_kind(Kind::Float).allclose(&b.to_kind(Kind::Float), 1e-2, 1e-2, false)
        };
        let mut compute = sequences().unwrap();
        let [own, fused] =
            [AttentionWay::Products, AttentionWay::Fused].map(|way| compute(way).unwrap());
        assert!(close(&own[0], &fused[0]), "{} and {}", own[0], fused[0]);
        for group in [true, false] {
            let mut compute = one_place(group).unwrap();
            let [wide, fused] =
                [AttentionWay::InF32, AttentionWay::Fused].map(|way| compute(way).unwrap());
            assert!(close(&wide, &fused), "{wide} and {fused}");
        }
    }

    #[test]
    fn other_kinds_and_few_keys_take_the_fused_kernel() {
        let make = |length: i64, kind: Kind| Tensor::zeros([1, 2, length, 8], (kind, Device::Cpu));
        for (kind, length, keys, one) in [
            (Kind::Float, 128, 128, false),
            (Kind::Half, 128, 128, false),
            (Kind::BFloat16, 31, 31, false),
            (Kind::BFloat16, 513, 513, false),
            (Kind::BFloat16, 40, 80, false),
            (Kind::BFloat16, 1, 63, true),
            (Kind::Float, 1, 64, true),
        ] {
            let found = way(&make(length, kind), &make(keys, kind), one).unwrap();
            assert_eq!(found, AttentionWay::Fused, "{kind:?} {length} {keys}");
        }
    }
}
