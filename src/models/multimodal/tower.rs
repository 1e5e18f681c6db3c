//! The hidden states of the tower for images that a larger model takes.

use tch::Tensor;

use crate::autograd::recompute::Tape;
use crate::error::Result;
use crate::models::inputs::Inputs;
use crate::models::vision::{ImageTower, ImageTowerConfig};

/// The hidden states of the tower that the connector takes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Taken {
    /// Those behind so many blocks each, side by side; without those of the first place perhaps.
    Behind { depths: Vec<usize>, without_first: bool },
    /// Those behind the last norm.
    Last,
}

impl Taken {
    /// The number of places of an image, and their width.
    pub(super) fn shape(&self, tower: &ImageTowerConfig) -> (i64, i64) {
        let (places, width) = (tower.places(), tower.width());
        match self {
            Taken::Behind { depths, without_first } => {
                (places - i64::from(*without_first), width * depths.len() as i64)
            }
            Taken::Last => (places, width),
        }
    }

    /// Images `[images, channels, height, width]` to what the connector takes, `[images, places, width]`.
    pub(super) fn of<'m>(
        &self,
        tower: &'m ImageTower,
        inputs: Inputs,
        tape: &mut Tape<'m>,
    ) -> Result<Tensor> {
        match self {
            Taken::Behind { depths, without_first } => {
                let images = inputs.needed_images()?;
                let states = tower.hidden_states_at(images, depths, inputs.train, tape)?;
                let kept = |states: Tensor| -> Result<Tensor> {
                    let first = i64::from(*without_first);
                    Ok(states.f_narrow(1, first, states.size3()?.1 - first)?)
                };
                let states = states.into_iter().map(kept).collect::<Result<Vec<_>>>()?;
                Ok(Tensor::f_cat(&states, -1)?)
            }
            Taken::Last => tower.hidden_states_with(inputs, tape),
        }
    }
}
