//! The positions of texts and images on three axes, as Qwen2.5-VL and Qwen3-VL count them.

use tch::{Device, Tensor};

use crate::device::trace::{numbers_of, sent_numbers};
use crate::error::Result;
use crate::models::vision::GridThw;

/// `[3, batch, length]`: frames, rows and columns. A text counts on all three; an image begins where the text before it
/// ended, and its longer side is the way to what follows. Padding has the position 0. `ids` and `tokens` are
/// `[batch, length]`; each grid takes as many tokens of `image` as it has squares of `merge` patches a side.
pub(super) fn positions(
    ids: &Tensor,
    tokens: Option<&Tensor>,
    image: i64,
    grids: &[GridThw],
    merge: i64,
) -> Result<Tensor> {
    let (batch, length) = ids.size2()?;
    let all = numbers_of(ids, "the positions of images")?;
    let shown = match tokens {
        Some(tokens) => numbers_of(tokens, "the positions of images")?,
        None => vec![1; all.len()],
    };
    let mut axes = vec![vec![0_i64; all.len()]; 3];
    let mut grids = grids.iter();
    for row in 0..batch as usize {
        let (mut next, mut at) = (0, row * length as usize);
        let end = at + length as usize;
        while at < end {
            if shown[at] == 0 {
                at += 1;
                continue;
            }
            let grid = if all[at] == image { grids.next() } else { None };
            let Some([frames, rows, columns]) = grid else {
                axes.iter_mut().for_each(|axis| axis[at] = next);
                (next, at) = (next + 1, at + 1);
                continue;
            };
            let (rows, columns) = (rows / merge, columns / merge);
            let mut places = (at..end).filter(|place| shown[*place] != 0);
            for number in 0..frames * rows * columns {
                let Some(place) = places.next() else { break };
                let (frame, within) = (number / (rows * columns), number % (rows * columns));
                let own = [frame, within / columns, within % columns];
                for (axis, own) in axes.iter_mut().zip(own) {
                    axis[place] = next + own;
                }
                at = place + 1;
            }
            next += rows.max(columns);
        }
    }
    let axes: Vec<Tensor> = axes
        .iter()
        .map(|axis| Ok(sent_numbers(axis, Device::Cpu)?.f_view([batch, length])?))
        .collect::<Result<_>>()?;
    Ok(Tensor::f_stack(&axes, 0)?)
}
