//! A tower for texts beside one for images: what of a batch goes to which, and how near their features are.

use tch::Tensor;

use crate::autograd::recompute::Tape;
use crate::error::{refuse, Result};
use crate::kernels::number::WithNumber;
use crate::models::inputs::Inputs;
use crate::models::model::Model;

/// Hidden states of the tower that the inputs are for.
pub(super) fn hidden_states<'m>(
    text: &'m impl Model,
    vision: &'m impl Model,
    inputs: Inputs,
    tape: &mut Tape<'m>,
) -> Result<Tensor> {
    match (inputs.ids, inputs.pixel_values) {
        (Some(_), None) => text.hidden_states_with(inputs, tape),
        (None, Some(_)) => vision.hidden_states_with(inputs, tape),
        _ => refuse!(
            InvalidArgument,
            "each tower has hidden states of its own: give input_ids or pixel_values, not both"
        ),
    }
}

/// The texts and the images of a batch.
pub(super) fn parted(inputs: Inputs) -> (Inputs, Inputs) {
    let texts = Inputs { pixel_values: None, ..inputs };
    (texts, Inputs { ids: None, attention_mask: None, ..inputs })
}

/// The cosines `[n, m]` between vectors `[n, size]` and `[m, size]`.
pub(super) fn cosines(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let unit = |x: &Tensor| x.f_div(&x.f_lengths()?);
    Ok(unit(a)?.f_matmul(&unit(b)?.f_tr()?)?)
}
