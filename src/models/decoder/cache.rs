//! The keys and values of what has passed, so that generation computes each token once.

use tch::Tensor;

use crate::error::Result;

/// Room for `capacity` places per layer.
#[derive(Debug)]
pub(super) struct Cache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    capacity: i64,
    pub(super) length: i64,
}

impl Cache {
    pub(super) fn new(layers: i64, capacity: i64) -> Self {
        Cache { layers: (0..layers).map(|_| None).collect(), capacity, length: 0 }
    }

    /// Adds keys and values `[batch, heads, new, head_dim]` of a layer and gives all there are.
    pub(super) fn extend(
        &mut self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (batch, heads, new, dim) = keys.size4()?;
        let room = [batch, heads, self.capacity, dim];
        let (all_keys, all_values) = match self.layers[layer].take() {
            Some(pair) => pair,
            None => (keys.f_new_empty(room, kind_and_device(keys)?)?, {
                values.f_new_empty(room, kind_and_device(values)?)?
            }),
        };
        let write = |all: &Tensor, part: &Tensor| -> Result<Tensor> {
            all.f_narrow(2, self.length, new)?.f_copy_(part)?;
            Ok(all.f_narrow(2, 0, self.length + new)?)
        };
        let now = (write(&all_keys, keys)?, write(&all_values, values)?);
        self.layers[layer] = Some((all_keys, all_values));
        Ok(now)
    }
}

fn kind_and_device(tensor: &Tensor) -> Result<(tch::Kind, tch::Device)> {
    Ok((tensor.f_kind()?, tensor.device()))
}
