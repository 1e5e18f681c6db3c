//! The configuration of Qwen2.5-VL's and Qwen3-VL's towers for images.

use serde_json::Value;

use super::block::BlockShape;
use crate::error::{refuse, Result};
use crate::models::config::{layers_or, number, size_or, text};
use crate::models::nn::{Activation, NormKind};

/// A tower for images of any size, cut into patches.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::models) struct PackedVisionConfig {
    pub(super) block: BlockShape,
    pub(super) layers: i64,
    pub(super) channels: i64,
    pub(super) frames: i64,
    pub(super) patch_size: i64,
    /// The position embeddings on each side of a square, if there are some.
    pub(super) side: Option<i64>,
    pub(super) theta: f64,
    /// The patches on each side of a square that becomes one token.
    pub(in crate::models) merge: i64,
    /// Width of the language model.
    pub(in crate::models) out: i64,
    /// The blocks whose outputs are taken too, in order.
    pub(in crate::models) deep: Vec<usize>,
    pub(super) windows: Option<Windows>,
}

/// Squares of patches that see nothing outside.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Windows {
    /// The patches on each side.
    pub(super) side: i64,
    /// The blocks that see all of an image.
    pub(super) whole: Vec<usize>,
}

/// The numbers of one version, which the other has differently.
struct Version {
    size: i64,
    inner: i64,
    depth: i64,
    patch_size: i64,
    norm: NormKind,
    activation: &'static str,
}

const QWEN2_5: Version = Version {
    size: 3584,
    inner: 3420,
    depth: 32,
    patch_size: 14,
    norm: NormKind::Rms,
    activation: "silu",
};

const QWEN3: Version = Version {
    size: 1152,
    inner: 4304,
    depth: 27,
    patch_size: 16,
    norm: NormKind::Layer,
    activation: "gelu_pytorch_tanh",
};

impl PackedVisionConfig {
    pub(super) fn read(config: &Value) -> Result<Self> {
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let in_windows = model_type.starts_with("qwen2_5_vl");
        let version = if in_windows { QWEN2_5 } else { QWEN3 };
        let heads =
            if config.get("num_heads").is_some() { "num_heads" } else { "num_attention_heads" };
        let depth = if config.get("depth").is_some() { "depth" } else { "num_hidden_layers" };
        let act = text(config, "hidden_act", version.activation)?;
        let layers = layers_or(config, depth, version.depth)?;
        let rope = config.get("rope_parameters").filter(|rope| rope.is_object());
        let theta = rope.map_or(Ok(10_000.), |rope| number(rope, "rope_theta", 10_000.))?;
        let (patch_size, merge) = (
            size_or(config, "patch_size", version.patch_size)?,
            size_or(config, "spatial_merge_size", 2)?,
        );
        let read = PackedVisionConfig {
            block: BlockShape {
                size: size_or(config, "hidden_size", version.size)?,
                inner: size_or(config, "intermediate_size", version.inner)?,
                heads: size_or(config, heads, 16)?,
                qkv_bias: true,
                norm: version.norm,
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
            patch_size,
            side: if in_windows { None } else { Some(side(config)?) },
            theta,
            merge,
            out: size_or(config, "out_hidden_size", 3584)?,
            deep: if in_windows { Vec::new() } else { deep(config, layers)? },
            windows: in_windows.then(|| windows(config, patch_size, merge, layers)).transpose()?,
        };
        read.block.check()?;
        if read.block.size / read.block.heads % 4 != 0 {
            refuse!(
                InvalidConfig,
                "heads of {} dimensions, expected a multiple of 4: rows and columns turn a half each",
                read.block.size / read.block.heads
            );
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

    /// The kind of the norms, those of the connector included.
    pub(in crate::models) fn norm(&self) -> NormKind {
        self.block.norm
    }
}

/// The position embeddings on each side of `num_position_embeddings`.
fn side(config: &Value) -> Result<i64> {
    let places = size_or(config, "num_position_embeddings", 2304)?;
    let side = (places as f64).sqrt() as i64;
    if side * side != places {
        refuse!(InvalidConfig, "'num_position_embeddings' is {places}, expected a square");
    }
    Ok(side)
}

/// `window_size` in whole squares of patches, and `fullatt_block_indexes`.
fn windows(config: &Value, patch_size: i64, merge: i64, layers: i64) -> Result<Windows> {
    let pixels = size_or(config, "window_size", 112)?;
    let squares = pixels / merge / patch_size;
    if squares < 1 {
        refuse!(
            InvalidConfig,
            "'window_size' is {pixels}, expected {} or more: the pixels of the patches that become one token",
            patch_size * merge
        );
    }
    let whole = listed(config, "fullatt_block_indexes", &[7, 15, 23, 31])?;
    // Those beyond the last block are none.
    let whole = whole.into_iter().filter(|at| *at < layers).map(|at| at as usize);
    Ok(Windows { side: squares * merge, whole: whole.collect() })
}

/// `deepstack_visual_indexes`, which rise.
fn deep(config: &Value, layers: i64) -> Result<Vec<usize>> {
    let key = "deepstack_visual_indexes";
    let read = listed(config, key, &[8, 16, 24])?;
    let rises = read.windows(2).all(|pair| pair[0] < pair[1]);
    // The default may be beyond a small tower, which then takes those that it has.
    let given = config.get(key).is_some_and(|given| !given.is_null());
    if given && (!rises || read.iter().any(|at| *at >= layers)) {
        refuse!(
            InvalidConfig,
            "'{key}' is {}, expected rising numbers of 0 to {}",
            config[key],
            layers - 1
        );
    }
    Ok(read.into_iter().map(|at| at as usize).collect())
}

/// Numbers of blocks.
fn listed(config: &Value, key: &str, default: &[i64]) -> Result<Vec<i64>> {
    let given = match config.get(key) {
        None | Some(Value::Null) => return Ok(default.to_vec()),
        Some(given) => given,
    };
    let all = given.as_array().map(Vec::as_slice).unwrap_or_default();
    let read: Vec<i64> = all.iter().filter_map(Value::as_i64).collect();
    if !given.is_array() || read.len() != all.len() || read.iter().any(|at| *at < 0) {
        refuse!(
            InvalidConfig,
            "'{key}' is {given}, expected a list of numbers of blocks, from 0 on"
        );
    }
    Ok(read)
}
