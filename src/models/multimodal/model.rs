//! A model of images and texts: images become embeddings, which take the places of their tokens.

use std::sync::Arc;

use tch::nn::Init;
use tch::{Kind, Tensor};

use super::config::ImageTextToTextConfig;
use super::connector::Connector;
use super::image_tokens::ImageTokens;
use super::positions::positions;
use super::tiles::Tiles;
use crate::autograd::recompute::Tape;
use crate::device::trace::numbers_of;
use crate::device::transfer::sent;
use crate::error::Result;
use crate::kernels::number::WithNumber;
use crate::models::config::ModelConfig;
use crate::models::decoder::Decoder;
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::nn::{Rows, Sites, Weights};
use crate::models::vision::ImageTower;
use crate::pretrained::Head;

/// A language model that sees: a tower for images, a connector, a [`Decoder`].
///
/// Variables are named as in transformers: `model.vision_tower.…`, `model.multi_modal_projector.…`,
/// `model.language_model.layers.0.input_layernorm.weight`, …, `lm_head.weight`; without a head, without `model`.
///
/// Inputs are ids and the images of the whole batch, in the order of the rows that they belong to. The ids hold
/// [`image_tokens`](Self::image_tokens) image tokens for each. To count them, ids on a GPU are waited for; ids
/// on the CPU are counted there, and brought to the model's device with what goes with them.
///
/// ```no_run
/// use ln_tuning::models::{GenerateOptions, ImageTextToText, Inputs, Model};
/// # let (ids, images) = (tch::Tensor::from_slice2(&[[1_i64]]), tch::Tensor::new());
/// let (vs, model) = ImageTextToText::from_pretrained("llava-1.5-7b-hf", tch::Device::Cpu, None)?;
/// let inputs = Inputs::new(&ids).pixel_values(&images);
/// let answer = model.generate(inputs, &GenerateOptions::default())?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[derive(Debug)]
#[doc(alias = "AutoModelForImageTextToText")]
#[doc(alias = "LlavaForConditionalGeneration")]
#[doc(alias = "Gemma3ForConditionalGeneration")]
#[doc(alias = "Idefics3ForConditionalGeneration")]
#[doc(alias = "SmolVLMForConditionalGeneration")]
#[doc(alias = "Qwen2_5_VLForConditionalGeneration")]
#[doc(alias = "Qwen3VLForConditionalGeneration")]
pub struct ImageTextToText {
    config: ImageTextToTextConfig,
    tower: ImageTower,
    connector: Connector,
    tiles: Option<Tiles>,
    pub(super) text: Decoder,
    pub(super) sites: Arc<Sites>,
}

/// A batch whose images stand in the places of their tokens, on the model's device.
pub(super) struct Merged {
    ids: Tensor,
    attention_mask: Option<Tensor>,
    documents: Option<Tensor>,
    /// Of images whose tokens look at each other.
    blocks: Option<Tensor>,
    /// On three axes, where there are images and they are of any size.
    positions: Option<Tensor>,
    /// Added to what the first blocks give.
    added: Vec<Tensor>,
    embeds: Tensor,
    train: bool,
    rows: Option<Rows>,
}

impl Model for ImageTextToText {
    type Config = ImageTextToTextConfig;

    fn build(weights: &Weights, config: &ImageTextToTextConfig) -> Result<Self> {
        let base = match config.head() {
            Head::None => weights.clone(),
            _ => weights.at("model"),
        };
        let names = &config.names;
        let init = Init::Randn { mean: 0., stdev: 0.02 };
        Ok(ImageTextToText {
            text: Decoder::build_at(&base.at(names.text), weights, &config.text)?,
            tower: ImageTower::build(&base.at(names.tower), &config.tower)?,
            connector: Connector::build(&base.at(names.connector), &config.connector, init)?,
            tiles: config
                .tiles
                .as_ref()
                .map(|tiles| Tiles::build(&base, tiles, config.text.hidden_size()))
                .transpose()?,
            sites: weights.sites(),
            config: config.clone(),
        })
    }

    fn config(&self) -> &ImageTextToTextConfig {
        &self.config
    }

    fn kind(&self) -> Kind {
        self.text.kind()
    }

    fn hidden_states_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        let merged = self.merged(&inputs, tape)?;
        self.text.hidden_states_with(merged.inputs(), tape)
    }

    fn logits_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        let merged = self.merged(&inputs, tape)?;
        self.text.logits_with(merged.inputs(), tape)
    }
}

impl ImageTextToText {
    /// The language model.
    pub fn decoder(&self) -> &Decoder {
        &self.text
    }

    /// The id of the token that stands for a part of an image.
    pub fn image_token_id(&self) -> i64 {
        self.config.image_token_id()
    }

    /// The number of image tokens that each image takes in the ids; each tile, where images are seen in tiles; 0 where
    /// images are of any size, and take one for each square of patches of their
    /// [`image_grid_thw`](Inputs::image_grid_thw).
    pub fn tokens_per_image(&self) -> i64 {
        self.config.tokens_per_image()
    }

    /// As [`ImageTextToTextConfig::image_tokens`].
    ///
    /// # Errors
    /// `InvalidArgument` for an image without pixels.
    pub fn image_tokens(&self, height: i64, width: i64) -> Result<i64> {
        self.config.image_tokens(height, width)
    }

    /// Images `[images, channels, height, width]` to the tower's hidden states that the connector takes,
    /// `[images, places, width]`: what may be kept as long as the tower does not train. Dropout is off. Where images
    /// are of any size, `[patches, numbers]` to `[patches, width]`.
    ///
    /// # Errors
    /// `ShapeMismatch` for images of another shape; `Torch` for another kind or device than the model's.
    pub fn image_features<'a>(&self, images: impl Into<Inputs<'a>>) -> Result<Tensor> {
        let images = images.into();
        images.check(self.model_type(), &self.taken_by_tower())?;
        let rows = images.named_rows(&self.sites)?;
        self.features(&images, rows, &mut Tape::off())
    }

    /// The inputs that there is use for.
    fn taken(&self) -> Vec<&'static str> {
        let mut taken = vec!["input_ids", "attention_mask", "image_features"];
        taken.extend(self.config.tower.packed().is_none().then_some("documents"));
        taken.extend(self.tiles.as_ref().map(|_| "image_sizes"));
        taken.extend(self.taken_by_tower());
        taken
    }

    fn taken_by_tower(&self) -> Vec<&'static str> {
        let mut taken = vec!["pixel_values"];
        taken.extend(self.config.tower.pads().then_some("pixel_attention_mask"));
        taken.extend(self.config.tower.packed().map(|_| "image_grid_thw"));
        taken
    }

    /// `rows` are those of the images.
    fn features<'m>(
        &'m self,
        inputs: &Inputs,
        rows: Option<Rows>,
        tape: &mut Tape<'m>,
    ) -> Result<Tensor> {
        self.config.tower.check_images(inputs.needed_images()?)?;
        let images = Inputs {
            pixel_values: inputs.pixel_values,
            pixel_attention_mask: inputs.pixel_attention_mask,
            image_grid_thw: inputs.image_grid_thw,
            train: inputs.train,
            rows: rows.as_ref(),
            ..Inputs::default()
        };
        let _rows = images.enter();
        self.config.taken.of(&self.tower, images, tape)
    }

    /// Puts the embeddings of images into the places of their tokens.
    pub(super) fn merged<'m>(&'m self, inputs: &Inputs, tape: &mut Tape<'m>) -> Result<Merged> {
        inputs.check(self.model_type(), &self.taken())?;
        let own = inputs.named_rows(&self.sites)?;
        let inputs = &inputs.with_rows(own.as_ref());
        let ids = inputs.needed_ids()?;
        let ImageTokens { places, grids, each } = ImageTokens::of(&self.config, inputs, ids)?;
        let of_parts = |each: &[(i64, i64)]| {
            let rows = own.as_ref().filter(|_| !each.is_empty());
            rows.map(|rows| rows_of_images(rows, &places, each, ids)).transpose()
        };
        let rows = of_parts(&each)?;
        // A connector of images of any size sees the patches of all of them one after the other.
        let patches = grids.iter().map(|grid| grid.iter().product());
        let patches: Vec<(i64, i64)> =
            patches.zip(each.iter().map(|(_, tokens)| *tokens)).collect();
        let of_connector = if grids.is_empty() { rows.clone() } else { of_parts(&patches)? };
        let device = self.text.device();
        let places = sent(&places, device)?;
        let there = |tensor: Option<&Tensor>| tensor.map(|tensor| sent(tensor, device)).transpose();
        let positions = match self.config.tower.packed().filter(|_| !grids.is_empty()) {
            Some(packed) => {
                let (mask, id) = (inputs.attention_mask, self.image_token_id());
                Some(sent(&positions(ids, mask, id, &grids, packed.merge)?, device)?)
            }
            None => None,
        };
        let ids = sent(ids, device)?;
        let features = match (inputs.pixel_values, inputs.image_features) {
            (Some(_), _) => Some(self.features(inputs, rows.clone(), tape)?),
            (None, features) => features.map(Tensor::shallow_clone),
        };
        let shown = ids.f_eq_number(self.image_token_id())?;
        // The token of images may have no embedding of its own.
        let unknown = self.image_token_id() >= self.config.text.vocab_size();
        let known = if unknown { ids.f_fill_where(&shown, 0)? } else { ids.shallow_clone() };
        let _text = inputs.enter();
        let mut embeds = self.text.embedded(&known)?;
        let (mut blocks, mut added) = (None, Vec::new());
        if let Some(features) = features {
            blocks = self.config.looks_both_ways.then(|| runs(&shown)).transpose()?;
            // Not by a mask, whose places a GPU would have to count once more.
            let there = |into: &Tensor, images: &Tensor| -> Result<Tensor> {
                let (shape, size) = (into.size(), self.config.text.hidden_size());
                let images = images.f_to_kind(into.f_kind()?)?.f_reshape([-1, size])?;
                let rows = into.f_reshape([-1, size])?;
                Ok(rows.f_index_copy(0, &places, &images)?.f_view(&shape[..])?)
            };
            let _images = Rows::enter(of_connector);
            let mut images = self.connector.forward(&features)?;
            if let Some(tiles) = &self.tiles {
                images[0] = tiles.forward(&images[0], &inputs.needed_sizes()?)?;
            }
            let nothing = embeds.f_zeros_like()?;
            added = images[1..].iter().map(|one| there(&nothing, one)).collect::<Result<_>>()?;
            embeds = there(&embeds, &images[0])?;
        }
        Ok(Merged {
            ids,
            attention_mask: there(inputs.attention_mask)?,
            documents: there(inputs.documents)?,
            blocks,
            positions,
            added,
            embeds,
            train: inputs.train,
            rows: own,
        })
    }
}

/// The rows of the parts of images, of which each has a number of image tokens, in order: an image belongs to the row, or
/// the document, of its tokens.
fn rows_of_images(rows: &Rows, places: &Tensor, each: &[(i64, i64)], ids: &Tensor) -> Result<Rows> {
    let places = numbers_of(places, "the adapters of images")?;
    let length = ids.size2()?.1;
    let (mut choices, mut at) = (Vec::new(), 0);
    for (parts, tokens) in each {
        let choice = rows.choice_at(places.get(at).copied().unwrap_or(0), length);
        choices.extend(vec![choice; *parts as usize]);
        at += *tokens as usize;
    }
    rows.of_parts(choices)
}

/// The numbers of the runs of places that are `shown`, `[batch, length]` both, from 1 on; 0 elsewhere.
fn runs(shown: &Tensor) -> Result<Tensor> {
    let before = shown.f_narrow(1, 0, shown.size2()?.1 - 1)?.f_constant_pad_nd([1, 0])?;
    let starts = shown.f_logical_and(&before.f_logical_not()?)?;
    Ok(starts.f_cumsum(1, Kind::Int64)?.f_mul(shown)?)
}

impl Merged {
    /// The inputs of the language model.
    pub(super) fn inputs(&self) -> Inputs<'_> {
        Inputs {
            rows: self.rows.as_ref(),
            inputs_embeds: Some(&self.embeds),
            blocks: self.blocks.as_ref(),
            positions: self.positions.as_ref(),
            added: &self.added,
            ..Inputs::new(&self.ids)
                .attention_mask(self.attention_mask.as_ref())
                .documents(self.documents.as_ref())
                .train(self.train)
        }
    }
}
