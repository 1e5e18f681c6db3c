//! The towers of Qwen2.5-VL and Qwen3-VL: images of any size, cut into patches that stand in one row.

use std::rc::Rc;

use tch::nn::Init;
use tch::{Device, Kind, Tensor};

use super::block::BlockNames;
use super::packed_config::PackedVisionConfig;
use crate::autograd::recompute::Tape;
use crate::device::trace::{numbers_of, sent_numbers};
use crate::error::{refuse, Result};
use crate::kernels::number;
use crate::models::inputs::Inputs;
use crate::models::nn::{powers, run_batches, Block, Context, Mask, Rope, Rotation, Rows, Weights};

const NAMES: BlockNames = BlockNames {
    norms: ["norm1", "norm2"],
    qkv: &["attn.qkv"],
    o: "attn.proj",
    inner: &["mlp.linear_fc1"],
    outer: "mlp.linear_fc2",
    scales: None,
};

/// Those of Qwen2.5-VL, whose MLPs have a gate.
const GATED_NAMES: BlockNames =
    BlockNames { inner: &["mlp.gate_proj", "mlp.up_proj"], outer: "mlp.down_proj", ..NAMES };

/// The frames, rows and columns of an image's patches.
pub(in crate::models) type GridThw = [i64; 3];

#[derive(Debug)]
pub(in crate::models) struct PackedVision {
    config: PackedVisionConfig,
    /// `[size, channels, frames, height, width]`
    weight: Tensor,
    /// As position embeddings, of Qwen3-VL alone.
    bias: Option<Tensor>,
    /// `[places, size]`
    positions: Option<Tensor>,
    blocks: Vec<Block>,
    rope: Rope,
}

impl PackedVision {
    pub(super) fn build(weights: &Weights, config: &PackedVisionConfig) -> Result<Self> {
        let shape = &config.block;
        let (size, init, patch) = (shape.size, shape.init(), config.patch_size);
        let kernel = [size, config.channels, config.frames, patch, patch];
        let embed = weights.at("patch_embed.proj");
        let names = if config.windows.is_some() { &GATED_NAMES } else { &NAMES };
        let mut blocks = shape.blocks(&weights.at("blocks"), names, config.layers)?;
        for (at, block) in blocks.iter_mut().enumerate() {
            block.attention.rotation = Some(Rotation { rope: 0, side_by_side: false });
            let windows = config.windows.as_ref().filter(|windows| !windows.whole.contains(&at));
            block.attention.window = windows.map(|windows| windows.side);
        }
        // Rows turn the first half of the pairs, columns the second.
        let half = powers(config.theta, size / shape.heads / 2)?.f_reciprocal()?;
        let pairs = half.size1()?;
        let mut rope = Rope::new(&Tensor::f_cat(&[&half, &half], 0)?)?;
        rope.axes = (0..2 * pairs).map(|pair| pair / pairs).collect();
        Ok(PackedVision {
            weight: embed.by_row("weight", &kernel, init)?,
            bias: config
                .side
                .map(|_| embed.by_row("bias", &[size], Init::Const(0.)))
                .transpose()?,
            positions: config
                .side
                .map(|side| weights.at("pos_embed").by_row("weight", &[side.pow(2), size], init))
                .transpose()?,
            blocks,
            rope,
            config: config.clone(),
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.weight.kind()
    }

    /// Patches `[patches, numbers]` to the hidden states behind the last block, and those that are taken besides, side
    /// by side: `[patches, width]`.
    pub(super) fn states<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        let images = inputs.needed_images()?;
        let grids = self.config.grids(&inputs)?;
        let hidden = self.embedded(images, &grids)?;
        let kind = hidden.f_kind()?;
        let (mut frames, mut contexts, mut start) = (Vec::new(), Vec::new(), 0);
        for (image, [count, rows, columns]) in grids.into_iter().enumerate() {
            let own = inputs.rows.as_ref().map(|rows| rows.part(image)).transpose()?;
            let _rows = Rows::enter(own);
            let positions = self.positions_of(rows, columns)?;
            let (cos, sin) = self.angles(rows, columns, images.device(), kind)?;
            let window = self.window(rows, columns, images.device())?;
            for _ in 0..count {
                let mut frame = hidden.f_narrow(0, start, rows * columns)?;
                if let Some(positions) = &positions {
                    frame = frame.f_add(positions)?;
                }
                frames.push(frame.f_unsqueeze(0)?);
                let angles = vec![(cos.shallow_clone(), sin.shallow_clone())];
                let mut masks = vec![(None, Mask::Everything)];
                if let Some((side, seen)) = &window {
                    let heads = self.config.block.heads;
                    let mask = Mask::Seen(seen.shallow_clone());
                    masks.push((Some(*side), mask.ready(kind, (heads, heads))?));
                }
                contexts.push(Rc::new(Context::with_windows(inputs.train, masks, angles)));
                start += rows * columns;
            }
        }
        let (mut taken, mut from) = (Vec::new(), 0);
        for to in self.config.deep.iter().map(|at| at + 1).chain([self.blocks.len()]) {
            frames = run_batches(&self.blocks[from..to], frames, &contexts, None, tape)?;
            taken.push(Tensor::f_cat(&frames, 1)?.f_squeeze_dim(0)?);
            from = to;
        }
        taken.rotate_right(1);
        Ok(Tensor::f_cat(&taken, -1)?)
    }

    /// Patches of all images to the first hidden states, `[patches, size]`.
    fn embedded(&self, images: &Tensor, grids: &[GridThw]) -> Result<Tensor> {
        let (size, numbers) = self.config.widths();
        let product = |x: &Tensor, weight: &Tensor, bias: Option<&Tensor>| {
            Ok(x.f_linear(&weight.f_view([size, numbers])?, bias)?)
        };
        let bias = self.bias.as_ref();
        let Some(rows) = Rows::with_own([Some(&self.weight), bias]) else {
            return product(images, &self.weight, bias);
        };
        let (mut all, mut start) = (Vec::new(), 0);
        for (image, grid) in grids.iter().enumerate() {
            let (adapter, count) = (rows.adapter(image), grid.iter().product());
            let bias = bias.map(|bias| rows.of(bias, adapter)).transpose()?;
            let patches = images.f_narrow(0, start, count)?;
            all.push(product(&patches, &rows.of(&self.weight, adapter)?, bias.as_ref())?);
            start += count;
        }
        Ok(Tensor::f_cat(&all, 0)?)
    }

    /// The position embeddings `[rows · columns, size]`, interpolated, in the order of the patches.
    fn positions_of(&self, rows: i64, columns: i64) -> Result<Option<Tensor>> {
        let (Some(side), Some(positions)) = (self.config.side, &self.positions) else {
            return Ok(None);
        };
        let positions = match Rows::with_own([Some(positions)]) {
            Some(rows) => rows.of(positions, rows.adapter(0))?,
            None => positions.shallow_clone(),
        };
        let square = positions.f_view([1, side, side, -1])?.f_permute([0, 3, 1, 2])?;
        let square = square.f_to_kind(Kind::Float)?;
        let fitted = square.f_upsample_bilinear2d([rows, columns], true, None, None)?;
        let fitted = fitted.f_squeeze_dim(0)?.f_permute([1, 2, 0])?;
        Ok(Some(self.in_order(&fitted)?.f_to_kind(self.kind())?))
    }

    /// The side of a window, and for each patch those that it sees in its own, `[patches, patches]`; none where an image
    /// is one window.
    fn window(&self, rows: i64, columns: i64, device: Device) -> Result<Option<(i64, Tensor)>> {
        let Some(windows) = &self.config.windows else { return Ok(None) };
        let side = windows.side;
        if rows <= side && columns <= side {
            return Ok(None);
        }
        let number: Vec<i64> = (0..rows * columns)
            .map(|at| (at / columns / side) * columns + at % columns / side)
            .collect();
        let number = sent_numbers(&number, device)?.f_view([rows, columns])?;
        let number = self.in_order(&number)?;
        let same = number.f_unsqueeze(1)?.f_eq_tensor(&number.f_unsqueeze(0)?)?;
        Ok(Some((side, same)))
    }

    /// `[rows, columns, …]` to `[rows · columns, …]`: the patches of a token stand together.
    fn in_order(&self, x: &Tensor) -> Result<Tensor> {
        let (size, merge) = (x.size(), self.config.merge);
        let (rows, columns) = (size[0], size[1]);
        let apart = [&[rows / merge, merge, columns / merge, merge], &size[2..]].concat();
        Ok(x.f_reshape(apart)?.f_transpose(1, 2)?.f_flatten(0, 3)?)
    }

    fn angles(
        &self,
        rows: i64,
        columns: i64,
        device: Device,
        kind: Kind,
    ) -> Result<(Tensor, Tensor)> {
        let down = number::arange(0, rows, device)?.f_unsqueeze(1)?;
        let across = number::arange(0, columns, device)?.f_unsqueeze(0)?;
        let both = [down, across].map(|axis| axis.f_expand([rows, columns], false));
        let both = both.into_iter().map(|axis| self.in_order(&axis?));
        let positions = Tensor::f_stack(&both.collect::<Result<Vec<_>>>()?, 0)?.f_unsqueeze(1)?;
        let (cos, sin) = self.rope.tables(&positions, false, kind)?;
        Ok((cos.f_unsqueeze(-2)?, sin.f_unsqueeze(-2)?))
    }
}

impl PackedVisionConfig {
    /// The grids of the inputs' images, which must be those of their patches.
    pub(in crate::models) fn grids(&self, inputs: &Inputs) -> Result<Vec<GridThw>> {
        let Some(given) = inputs.image_grid_thw else {
            refuse!(
                InvalidArgument,
                "image_grid_thw are missing beside pixel_values: they say how the patches of images stand"
            );
        };
        let size = given.size();
        if size.len() != 2 || size[1] != 3 {
            refuse!(ShapeMismatch, "image_grid_thw have shape {size:?}, expected [images, 3]");
        }
        let numbers = numbers_of(given, "image_grid_thw")?;
        let grids: Vec<GridThw> =
            numbers.chunks(3).map(|grid| [grid[0], grid[1], grid[2]]).collect();
        let merge = self.merge;
        let fits = |[frames, rows, columns]: &GridThw| {
            let whole = |side: i64| side > 0 && side % merge == 0 && side < 1 << 20;
            (1..1 << 20).contains(frames) && whole(*rows) && whole(*columns)
        };
        if let Some(grid) = grids.iter().find(|grid| !fits(grid)) {
            refuse!(
                InvalidArgument,
                "image_grid_thw hold {grid:?}, expected frames, rows and columns, the latter two multiples of {merge}"
            );
        }
        let patches = grids.iter().map(|grid| grid.iter().product::<i64>());
        let patches = patches.fold(0, i64::saturating_add);
        let (width, numbers) = self.widths();
        let (name, given, numbers) = match (inputs.pixel_values, inputs.image_features) {
            (Some(images), _) => ("pixel_values", images, numbers),
            (None, Some(features)) => {
                ("image_features", features, width * (1 + self.deep.len() as i64))
            }
            (None, None) => return Ok(grids),
        };
        if given.size() != [patches, numbers] {
            refuse!(
                ShapeMismatch,
                "{name} have shape {:?}, expected [{patches}, {numbers}]: a row for each patch of image_grid_thw",
                given.size()
            );
        }
        Ok(grids)
    }
}
