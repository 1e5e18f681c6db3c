//! A model of images and texts: images become embeddings, which take the places of their tokens.

use tch::nn::Init;
use tch::{Kind, Tensor};

use super::config::ImageTextToTextConfig;
use super::connector::Connector;
use super::tiles::Tiles;
use crate::autograd::recompute::Tape;
use crate::device::transfer::sent;
use crate::error::{refuse, Result};
use crate::kernels::number::WithNumber;
use crate::models::config::ModelConfig;
use crate::models::decoder::Decoder;
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::nn::Weights;
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
pub struct ImageTextToText {
    config: ImageTextToTextConfig,
    tower: ImageTower,
    connector: Connector,
    tiles: Option<Tiles>,
    pub(super) text: Decoder,
}

/// A batch whose images stand in the places of their tokens, on the model's device.
pub(super) struct Merged {
    ids: Tensor,
    attention_mask: Option<Tensor>,
    documents: Option<Tensor>,
    /// Of images whose tokens look at each other.
    blocks: Option<Tensor>,
    embeds: Tensor,
    train: bool,
}

const TAKEN: [&str; 5] =
    ["input_ids", "attention_mask", "documents", "pixel_values", "image_features"];

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

    /// The number of image tokens that each image takes in the ids; each tile, where images are seen in tiles.
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
    /// `[images, places, width]`: what may be kept as long as the tower does not train. Dropout is off.
    ///
    /// # Errors
    /// `ShapeMismatch` for images of another shape; `Torch` for another kind or device than the model's.
    pub fn image_features<'a>(&self, images: impl Into<Inputs<'a>>) -> Result<Tensor> {
        let images = images.into();
        let pads = self.config.tower.pads();
        let taken = ["pixel_values", "pixel_attention_mask"];
        images.check(self.model_type(), &taken[..1 + usize::from(pads)])?;
        self.features(&images, &mut Tape::off())
    }

    fn features<'m>(&'m self, inputs: &Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        self.config.tower.check_images(inputs.needed_images()?)?;
        let images = Inputs {
            pixel_values: inputs.pixel_values,
            pixel_attention_mask: inputs.pixel_attention_mask,
            train: inputs.train,
            ..Inputs::default()
        };
        self.config.taken.of(&self.tower, images, tape)
    }

    /// Puts the embeddings of images into the places of their tokens.
    pub(super) fn merged<'m>(&'m self, inputs: &Inputs, tape: &mut Tape<'m>) -> Result<Merged> {
        let mut taken = TAKEN.to_vec();
        taken.extend(self.config.tower.pads().then_some("pixel_attention_mask"));
        taken.extend(self.tiles.as_ref().map(|_| "image_sizes"));
        inputs.check(self.model_type(), &taken)?;
        let ids = inputs.needed_ids()?;
        let device = self.text.device();
        let places = sent(&self.image_places(inputs, ids)?, device)?;
        let there = |tensor: Option<&Tensor>| tensor.map(|tensor| sent(tensor, device)).transpose();
        let ids = sent(ids, device)?;
        let features = match (inputs.pixel_values, inputs.image_features) {
            (Some(_), _) => Some(self.features(inputs, tape)?),
            (None, features) => features.map(Tensor::shallow_clone),
        };
        let shown = ids.f_eq_number(self.image_token_id())?;
        // The token of images may have no embedding of its own.
        let unknown = self.image_token_id() >= self.config.text.vocab_size();
        let known = if unknown { ids.f_fill_where(&shown, 0)? } else { ids.shallow_clone() };
        let mut embeds = self.text.embedded(&known)?;
        let mut blocks = None;
        if let Some(features) = features {
            blocks = self.config.looks_both_ways.then(|| runs(&shown)).transpose()?;
            let mut images = self.connector.forward(&features)?;
            if let Some(tiles) = &self.tiles {
                images = tiles.forward(&images, &inputs.needed_sizes()?)?;
            }
            let images = images.f_to_kind(embeds.f_kind()?)?;
            // Not by a mask, whose places a GPU would have to count once more.
            let (shape, size) = (embeds.size(), self.config.text.hidden_size());
            let rows = embeds.f_reshape([-1, size])?;
            let images = images.f_reshape([-1, size])?;
            embeds = rows.f_index_copy(0, &places, &images)?.f_view(&shape[..])?;
        }
        Ok(Merged {
            ids,
            attention_mask: there(inputs.attention_mask)?,
            documents: there(inputs.documents)?,
            blocks,
            embeds,
            train: inputs.train,
        })
    }

    /// The places of image tokens among the ids, which must be as many as images take.
    fn image_places(&self, inputs: &Inputs, ids: &Tensor) -> Result<Tensor> {
        let (places, width) = self.config.features();
        if let Some(images) = inputs.pixel_values {
            self.config.tower.check_images(images)?;
        }
        let images = match (inputs.pixel_values, inputs.image_features) {
            (Some(_), Some(_)) => refuse!(
                InvalidArgument,
                "pixel_values and image_features are both given: give images, or what image_features made of them"
            ),
            (Some(images), None) => images.size().first().copied().unwrap_or(0),
            (None, Some(features)) => match features.size()[..] {
                [images, p, w] if (p, w) == (places, width) => images,
                _ => refuse!(
                    ShapeMismatch,
                    "image_features have shape {:?}, expected [images, {places}, {width}]",
                    features.size()
                ),
            },
            (None, None) => 0,
        };
        let (id, expected) = (self.image_token_id(), self.tokens_of(images, inputs)?);
        let at = ids.f_eq_number(id)?.f_reshape([-1])?.f_nonzero()?.f_squeeze_dim(1)?;
        let found = at.size1()?;
        if found != expected {
            let each = match &self.tiles {
                Some(_) => "as many as `image_tokens` says".to_owned(),
                None => self.tokens_per_image().to_string(),
            };
            refuse!(
                ShapeMismatch,
                "the ids hold {found} image tokens ({id}), and {images} images take {expected}: put {each} into the ids \
                 for each image"
            );
        }
        Ok(at)
    }

    /// The number of tokens that so many images take, or tiles of images.
    fn tokens_of(&self, images: i64, inputs: &Inputs) -> Result<i64> {
        let Some(tiles) = self.config.tiles.as_ref().filter(|_| images > 0) else {
            return Ok(images * self.tokens_per_image());
        };
        let (sizes, mut expected, mut tokens) = (inputs.needed_sizes()?, 0, 0);
        for size in &sizes {
            let of_image = tiles.count(*size)?;
            (expected, tokens) = (expected + of_image.0, tokens + of_image.1);
        }
        if images != expected {
            refuse!(
                ShapeMismatch,
                "{} images of these sizes are seen in {expected} tiles, and there are {images}: give all tiles of each \
                 image, the whole first",
                sizes.len()
            );
        }
        Ok(tokens)
    }
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
            inputs_embeds: Some(&self.embeds),
            blocks: self.blocks.as_ref(),
            ..Inputs::new(&self.ids)
                .attention_mask(self.attention_mask.as_ref())
                .documents(self.documents.as_ref())
                .train(self.train)
        }
    }
}
