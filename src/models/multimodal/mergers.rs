//! The connector of Qwen2.5-VL and Qwen3-VL: the patches of a square side by side, two linear layers; for each of the states taken.

use tch::nn::Init;
use tch::Tensor;

use crate::error::{refuse, Result};
use crate::models::decoder::DecoderConfig;
use crate::models::nn::{Activation, Linear, Norm, NormKind, Weights};
use crate::models::vision::PackedVisionConfig;

#[derive(Debug)]
pub(super) struct Mergers {
    width: i64,
    mergers: Vec<Merger>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct MergersConfig {
    /// Of the tower's hidden states, of a square of them, and of the language model.
    widths: [i64; 3],
    /// The states that are taken besides the last.
    deep: i64,
    norm: NormKind,
}

#[derive(Debug)]
struct Merger {
    norm: Norm,
    /// True if the norm stands on whole squares.
    on_squares: bool,
    layers: [Linear; 2],
}

impl MergersConfig {
    pub(super) fn read(tower: &PackedVisionConfig, decoder: &DecoderConfig) -> Result<Self> {
        let width = tower.widths().0;
        if tower.out != decoder.hidden_size() {
            refuse!(
                InvalidConfig,
                "'out_hidden_size' of the tower is {}, expected the language model's hidden_size, {}",
                tower.out,
                decoder.hidden_size()
            );
        }
        let widths = [width, width * tower.merge.pow(2), tower.out];
        Ok(MergersConfig { widths, deep: tower.deep.len() as i64, norm: tower.norm() })
    }
}

impl Mergers {
    pub(super) fn build(weights: &Weights, config: &MergersConfig, init: Init) -> Result<Self> {
        let [width, square, out] = config.widths;
        let (norm, first, second) = match config.norm {
            NormKind::Rms => ("ln_q", "mlp.0", "mlp.2"),
            _ => ("norm", "linear_fc1", "linear_fc2"),
        };
        let merger = |weights: &Weights, on_squares: bool| -> Result<Merger> {
            let linear = |name: &str, to: i64| {
                Linear::build_plain(&weights.at(name), (square, to), true, init)
            };
            let normed = if on_squares { square } else { width };
            Ok(Merger {
                norm: Norm::build(&weights.at(norm), config.norm, normed, 1e-6)?,
                on_squares,
                layers: [linear(first, square)?, linear(second, out)?],
            })
        };
        let list = weights.at("deepstack_merger_list");
        let deep = (0..config.deep).map(|at| merger(&list.at(at), true));
        let first = merger(&weights.at("merger"), false);
        let mergers = std::iter::once(first).chain(deep).collect::<Result<_>>()?;
        Ok(Mergers { width, mergers })
    }

    /// Hidden states `[patches, width]`, side by side, to `[tokens, size]` each.
    pub(super) fn forward(&self, features: &Tensor) -> Result<Vec<Tensor>> {
        let parts = features.f_split(self.width, -1)?;
        parts.iter().zip(&self.mergers).map(|(part, merger)| merger.forward(part)).collect()
    }
}

impl Merger {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [first, second] = &self.layers;
        let square = first.weight.size()[1];
        let together = |x: &Tensor| x.f_reshape([-1, square]);
        let normed = if self.on_squares {
            self.norm.forward(&together(x)?)?
        } else {
            together(&self.norm.forward(x)?)?
        };
        second.forward(&Activation::Gelu.apply(&first.forward(&normed)?)?)
    }
}
