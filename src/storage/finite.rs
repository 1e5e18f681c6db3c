//! Values that are NaN or infinite, or become so in another kind.

use tch::{Kind, Tensor};

use crate::error::{refusal, Error, Result};
use crate::storage::info::is_float;

/// The number of elements that are checked at once: each check waits for the device.
const AT_ONCE: usize = 1 << 22;

/// Refuses tensors with values that are not finite in the kind that they are to have.
pub(crate) fn check_finite(tensors: &[(&str, &Tensor, Kind)]) -> Result<()> {
    let mut rest = tensors;
    while let Some((_, first, kind)) = rest.first() {
        let (mut count, mut elements) = (0, 0);
        for (_, tensor, other) in rest {
            let alike = tensor.f_kind()? == first.f_kind()? && tensor.device() == first.device();
            if count > 0 && (!alike || other != kind || elements + tensor.numel() > AT_ONCE) {
                break;
            }
            (count, elements) = (count + 1, elements + tensor.numel());
        }
        let (these, others) = rest.split_at(count);
        let pieces = these.iter().map(|(_, tensor, _)| Ok(tensor.f_detach()?.f_reshape([-1])?));
        let pieces: Vec<Tensor> = pieces.collect::<Result<_>>()?;
        let all = if count == 1 { pieces[0].shallow_clone() } else { Tensor::f_cat(&pieces, 0)? };
        if !is_finite(&all.f_to_kind(*kind)?)? {
            for ((name, _, _), piece) in these.iter().zip(&pieces) {
                if let Some(value) = first_lost(None, piece, &piece.f_to_kind(*kind)?)? {
                    return Err(refused(&format!("'{name}'"), value, *kind));
                }
            }
        }
        rest = others;
    }
    Ok(())
}

/// Refuses a cast in which a finite value becomes infinite. `what` begins the message.
pub(crate) fn check_cast(what: &str, before: &Tensor, after: &Tensor) -> Result<()> {
    if !is_finite(after)? {
        if let Some(value) = first_lost(Some(before), before, after)? {
            return Err(refused(what, value, after.f_kind()?));
        }
    }
    Ok(())
}

/// True if all values are finite; waits for the device.
pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool> {
    if tensor.numel() == 0 || !is_float(tensor.f_kind()?) {
        return Ok(true);
    }
    let (least, greatest) = tensor.f_detach()?.f_aminmax(None, false)?;
    Ok(least.f_double_value(&[])?.is_finite() && greatest.f_double_value(&[])?.is_finite())
}

/// The first value that is not finite `after`, as it is in `shown`; only those that are finite in `finite`, if given.
fn first_lost(finite: Option<&Tensor>, shown: &Tensor, after: &Tensor) -> Result<Option<f64>> {
    let mut lost = after.f_isfinite()?.f_logical_not()?;
    if let Some(finite) = finite {
        lost = lost.f_logical_and(&finite.f_isfinite()?)?;
    }
    let places = lost.f_reshape([-1])?.f_nonzero()?;
    if places.numel() == 0 {
        return Ok(None);
    }
    let place = places.f_int64_value(&[0, 0])?;
    Ok(Some(shown.f_detach()?.f_reshape([-1])?.f_double_value(&[place])?))
}

fn refused(what: &str, value: f64, kind: Kind) -> Error {
    if value.is_finite() {
        return refusal!(
            NonFinite,
            "{what} holds {value}, which is infinite in {kind:?}: choose a kind with a wider range, such as BFloat16 or \
             Float"
        );
    }
    refusal!(
        NonFinite,
        "{what} holds {value}, expected finite numbers: did the run that made it diverge?"
    )
}
