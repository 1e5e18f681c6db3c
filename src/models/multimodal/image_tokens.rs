//! The image tokens among the ids, which must be as many as images take.

use tch::Tensor;

use super::config::ImageTextToTextConfig;
use crate::error::{refuse, Result};
use crate::kernels::number::WithNumber;
use crate::models::inputs::Inputs;
use crate::models::vision::{GridThw, PackedVisionConfig};

pub(super) struct ImageTokens {
    /// `[tokens]`, their places among all ids, on the ids' device.
    pub(super) places: Tensor,
    /// Of images of any size.
    pub(super) grids: Vec<GridThw>,
    /// Of each image: its parts, which are tiles or the image itself, and its tokens.
    pub(super) each: Vec<(i64, i64)>,
}

impl ImageTokens {
    pub(super) fn of(
        config: &ImageTextToTextConfig,
        inputs: &Inputs,
        ids: &Tensor,
    ) -> Result<Self> {
        if inputs.pixel_values.is_some() && inputs.image_features.is_some() {
            refuse!(
                InvalidArgument,
                "pixel_values and image_features are both given: give images, or what image_features made of them"
            );
        }
        let id = config.image_token_id();
        let places = ids.f_eq_number(id)?.f_reshape([-1])?.f_nonzero()?.f_squeeze_dim(1)?;
        let found = places.size1()?;
        if let (Some(packed), Some(_)) = (config.tower.packed(), any_of_images(inputs)) {
            let grids = grids(packed, inputs)?;
            let merge = packed.merge;
            let squares = |grid: &GridThw| grid.iter().product::<i64>() / merge.pow(2);
            let expected: i64 = grids.iter().map(squares).sum();
            if found != expected {
                refuse!(
                    ShapeMismatch,
                    "the ids hold {found} image tokens ({id}), and the images of image_grid_thw take {expected}: put \
                     one into the ids for each {merge} x {merge} patches"
                );
            }
            let each = grids.iter().map(|grid| (1, squares(grid))).collect();
            return Ok(ImageTokens { places, grids, each });
        }
        let images = images(config, inputs)?;
        let each = tokens_of(config, images, inputs)?;
        let expected: i64 = each.iter().map(|(_, tokens)| tokens).sum();
        if found != expected {
            let each = match &config.tiles {
                Some(_) => "as many as `image_tokens` says".to_owned(),
                None => config.tokens_per_image().to_string(),
            };
            refuse!(
                ShapeMismatch,
                "the ids hold {found} image tokens ({id}), and {images} images take {expected}: put {each} into the ids \
                 for each image"
            );
        }
        Ok(ImageTokens { places, grids: Vec::new(), each })
    }
}

fn any_of_images<'a>(inputs: &Inputs<'a>) -> Option<&'a Tensor> {
    inputs.pixel_values.or(inputs.image_features).or(inputs.image_grid_thw)
}

fn grids(packed: &PackedVisionConfig, inputs: &Inputs) -> Result<Vec<GridThw>> {
    if inputs.pixel_values.is_none() && inputs.image_features.is_none() {
        refuse!(InvalidArgument, "image_grid_thw are given without the images' pixel_values");
    }
    packed.grids(inputs)
}

/// The number of images, all of one size.
fn images(config: &ImageTextToTextConfig, inputs: &Inputs) -> Result<i64> {
    if let Some(images) = inputs.pixel_values {
        config.tower.check_images(images)?;
        return Ok(images.size().first().copied().unwrap_or(0));
    }
    let Some(features) = inputs.image_features else { return Ok(0) };
    let (places, width) = config.features();
    match features.size()[..] {
        [images, p, w] if (p, w) == (places, width) => Ok(images),
        _ => refuse!(
            ShapeMismatch,
            "image_features have shape {:?}, expected [images, {places}, {width}]",
            features.size()
        ),
    }
}

/// The tiles, or 1, and the tokens of each image.
fn tokens_of(
    config: &ImageTextToTextConfig,
    images: i64,
    inputs: &Inputs,
) -> Result<Vec<(i64, i64)>> {
    let Some(tiles) = config.tiles.as_ref().filter(|_| images > 0) else {
        return Ok(vec![(1, config.tokens_per_image()); images.max(0) as usize]);
    };
    let sizes = inputs.needed_sizes()?;
    let each = sizes.iter().map(|size| tiles.count(*size)).collect::<Result<Vec<_>>>()?;
    let expected: i64 = each.iter().map(|(tiles, _)| tiles).sum();
    if images != expected {
        refuse!(
            ShapeMismatch,
            "{} images of these sizes are seen in {expected} tiles, and there are {images}: give all tiles of each image, \
             the whole first",
            sizes.len()
        );
    }
    Ok(each)
}
