//! The configuration of Qwen3-VL's tower for images.

use serde_json::Value;

use super::block::BlockShape;
use crate::error::{refuse, Result};
use crate::models::config::{layers_or, number, size_or, text};
use crate::models::nn::Activation;

/// A tower for images of any size, cut into patches.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::models) struct PackedVisionConfig {
    pub(super) block: BlockShape,
    pub(super) layers: i64,
    pub(super) channels: i64,
    pub(super) frames: i64,
    pub(super) patch_size: i64,
    /// The position embeddings on each side of a square.
    pub(super) side: i64,
    pub(super) theta: f64,
    /// The patches on each side of a square that becomes one token.
    pub(in crate::models) merge: i64,
    /// Width of the language model.
    pub(in crate::models) out: i64,
    /// The blocks whose outputs are taken too, in order.
    pub(in crate::models) deep: Vec<usize>,
}

impl PackedVisionConfig {
    pub(super) fn read(config: &Value) -> Result<Self> {
        let heads =
            if config.get("num_heads").is_some() { "num_heads" } else { "num_attention_heads" };
        let depth = if config.get("depth").is_some() { "depth" } else { "num_hidden_layers" };
        let act = text(config, "hidden_act", "gelu_pytorch_tanh")?;
        let layers = layers_or(config, depth, 27)?;
        let places = size_or(config, "num_position_embeddings", 2304)?;
        let rope = config.get("rope_parameters").filter(|rope| rope.is_object());
        let theta = rope.map_or(Ok(10_000.), |rope| number(rope, "rope_theta", 10_000.))?;
        let read = PackedVisionConfig {
            block: BlockShape {
                size: size_or(config, "hidden_size", 1152)?,
                inner: size_or(config, "intermediate_size", 4304)?,
                heads: size_or(config, heads, 16)?,
                qkv_bias: true,
                norm_eps: 1e-6,
                activation: Activation::named(act, "hidden_act")?,
                dropout: 0.,
                attention_dropout: 0.,
                scale: 1.,
                initializer_range: number(config, "initializer_range", 0.02)?,
            },
            layers,
            channels: size_or(config, "in_channels", 3)?,
            frames: size_or(config, "temporal_patch_size", 2)?,
            patch_size: size_or(config, "patch_size", 16)?,
            side: (places as f64).sqrt() as i64,
            theta,
            merge: size_or(config, "spatial_merge_size", 2)?,
            out: size_or(config, "out_hidden_size", 3584)?,
            deep: deep(config, layers)?,
        };
        read.block.check()?;
        if read.block.size / read.block.heads % 4 != 0 {
            refuse!(
                InvalidConfig,
                "heads of {} dimensions, expected a multiple of 4: rows and columns turn a half each",
                read.block.size / read.block.heads
            );
        }
        if read.side * read.side != places {
            refuse!(InvalidConfig, "'num_position_embeddings' is {places}, expected a square");
        }
        Ok(read)
    }

    /// The tokens of an image of so many pixels, whose patches fill squares.
    pub(in crate::models) fn tokens(&self, [height, width]: [i64; 2]) -> Result<i64> {
        let square = self.patch_size * self.merge;
        if height < 1 || width < 1 || height % square != 0 || width % square != 0 {
            refuse!(
                InvalidArgument,
                "the image is {height} x {width}, expected multiples of {square}: resize it as its processor does"
            );
        }
        Ok((height / square) * (width / square))
    }

    /// Width of the hidden states, and the numbers of a patch.
    pub(in crate::models) fn widths(&self) -> (i64, i64) {
        (self.block.size, self.channels * self.frames * self.patch_size.pow(2))
    }
}

/// `deepstack_visual_indexes`, which rise.
fn deep(config: &Value, layers: i64) -> Result<Vec<usize>> {
    let given = match config.get("deepstack_visual_indexes") {
        None | Some(Value::Null) => return Ok(vec![8, 16, 24]),
        Some(given) => given,
    };
    let all = given.as_array().map(Vec::as_slice).unwrap_or_default();
    let read: Vec<i64> = all.iter().filter_map(Value::as_i64).collect();
    let rises = read.windows(2).all(|pair| pair[0] < pair[1]);
    if !given.is_array()
        || read.len() != all.len()
        || !rises
        || read.iter().any(|at| !(0..layers).contains(at))
    {
        refuse!(
            InvalidConfig,
            "'deepstack_visual_indexes' is {given}, expected rising numbers of 0 to {}",
            layers - 1
        );
    }
    Ok(read.into_iter().map(|at| at as usize).collect())
}
