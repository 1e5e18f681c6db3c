//! A frozen matrix in the order that oneDNN multiplies fastest with, beside the variable that it was made of.

use std::sync::{Mutex, PoisonError};

use tch::{no_grad, Device, Kind, Tensor};

use crate::device::grad_mode::is_recorded;
use crate::error::Result;
use crate::kernels::linear_calls::{are_on, packed, packed_product, with_graph, Back};
#[cfg(target_os = "linux")]
use crate::pages::{file_maps, Pages};

/// Smaller matrices are multiplied with as they are.
const LEAST: usize = 1 << 16;

/// The matrix is packed when it is first multiplied with, and once more, the other way round, for the backward pass. A
/// variable that changes afterwards is multiplied with as it is from then on.
#[derive(Debug, Default)]
pub(crate) struct Packed(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    New,
    Packed {
        of: Stamp,
        forward: Tensor,
        back: Option<Tensor>,
    },
    Changed,
}

/// The storage of a variable and the number of changes in place.
#[derive(Debug, PartialEq)]
struct Stamp(usize, i64);

impl Packed {
    /// x · weightᵀ + bias, or x · weight + bias if the weight is transposed; `None` where the variable is to be
    /// multiplied with.
    pub(crate) fn product(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        transposed: bool,
    ) -> Result<Option<Tensor>> {
        let kind = weight.f_kind()?;
        if !matches!(kind, Kind::Float | Kind::BFloat16)
            || x.f_kind()? != kind
            || x.numel() == 0
            || weight.numel() < LEAST
            || weight.requires_grad()
            || (weight.device(), x.device()) != (Device::Cpu, Device::Cpu)
            || !are_on()
        {
            return Ok(None);
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Stamp(weight.data_ptr() as usize, weight.f_internal_version()?);
        match &*state {
            State::New => {
                let forward = ordered(weight, transposed)?;
                *state = State::Packed { of: now, forward, back: None };
                give_back(weight)?;
            }
            State::Packed { of, .. } if *of != now => *state = State::Changed,
            _ => (),
        }
        let State::Packed { forward, back, .. } = &mut *state else { return Ok(None) };
        let value = no_grad(|| packed_product(x, forward, bias))?;
        if back.is_none() && is_recorded(x)? {
            *back = Some(ordered(weight, !transposed)?);
            give_back(weight)?;
        }
        let way = Back { transposed, packed: back.as_ref(), ..Back::default() };
        Ok(Some(with_graph(&value, x, weight, bias, way)?))
    }
}

/// The packed matrix, of its transpose if it is turned.
fn ordered(weight: &Tensor, turned: bool) -> Result<Tensor> {
    no_grad(|| {
        let weight = weight.f_detach()?;
        Ok(if turned { packed(&weight.f_tr()?.f_contiguous()?)? } else { packed(&weight)? })
    })
}

/// The pages of a file's map can go: they come again if they are needed.
#[cfg(target_os = "linux")]
fn give_back(weight: &Tensor) -> Result<()> {
    match Pages::of(weight)? {
        Some(pages) if pages.is_in(&file_maps()?) => pages.give_back(),
        _ => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn give_back(_weight: &Tensor) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    #[test]
    fn products_and_gradients_are_those_of_the_variable_until_that_changes() {
        tch::set_num_threads(1);
        for kind in [Kind::Float, Kind::BFloat16] {
            for transposed in [false, true] {
                let mut weight = (Tensor::randn([300, 256], CPU) * 0.06).to_kind(kind);
                if transposed {
                    weight = weight.tr().contiguous();
                }
                let bias = Tensor::randn([300], CPU).to_kind(kind).set_requires_grad(true);
                let packed = Packed::default();
                let check = |weight: &Tensor, is_packed: bool| {
                    for shape in [vec![1, 256], vec![3, 5, 256], vec![200, 256]] {
                        let x = Tensor::randn(&shape, CPU).to_kind(kind).set_requires_grad(true);
                        let found = packed.product(&x, weight, Some(&bias), transposed).unwrap();
                        assert_eq!(found.is_some(), is_packed);
                        let Some(found) = found else { continue };
                        let matrix = if transposed { weight.tr() } else { weight.shallow_clone() };
                        let expected = x.linear(&matrix, Some(&bias));
                        let upstream = Tensor::randn(expected.size(), CPU).to_kind(kind);
                        let all = |y: &Tensor| {
                            let sum = (y * &upstream).sum(Kind::Float);
                            let mut all = Tensor::run_backward(&[sum], &[&x, &bias], false, false);
                            all.push(y.detach());
                            all
                        };
                        for (found, expected) in all(&found).iter().zip(all(&expected)) {
                            assert_eq!((found.size(), found.kind()), (expected.size(), kind));
                            let [found, expected] =
                                [found, &expected].map(|tensor| tensor.to_kind(Kind::Double));
                            let most = expected.abs().max().double_value(&[]);
                            let off = (found - expected).abs().max().double_value(&[]) / most;
                            assert!(off < if kind == Kind::Float { 1e-5 } else { 1e-2 }, "{off}");
                        }
                    }
                };
                check(&weight, true);
                let trains = weight.detach().set_requires_grad(true);
                check(&trains, false);
                check(&weight, true);
                let _ = weight.g_add_scalar_(1.);
                check(&weight, false);
            }
        }
    }

    #[test]
    fn a_variable_with_another_storage_is_multiplied_with_as_it_is() {
        tch::set_num_threads(1);
        let mut weight = Tensor::randn([300, 256], CPU);
        let x = Tensor::randn([4, 256], CPU);
        let packed = Packed::default();
        assert!(packed.product(&x, &weight, None, false).unwrap().is_some());
        weight.set_data(&Tensor::randn([300, 256], CPU));
        assert!(packed.product(&x, &weight, None, false).unwrap().is_none());
    }
}
