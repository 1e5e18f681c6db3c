//! The inputs of a model.

use tch::{Kind, Tensor};

use super::adapter_names::AdapterNames;
use super::nn::Rows;
use crate::device::trace::numbers_of;
use crate::error::{refusal, refuse, Error, Result};

/// Token ids or images, and what goes with them. From `&Tensor` where there is nothing else: integers are ids, other
/// kinds images.
///
/// A model refuses inputs that it has no use for.
///
/// ```
/// # use tch::{Kind, Tensor};
/// use ln_tuning::models::Inputs;
/// let ids = Tensor::from_slice2(&[[5_i64, 6, 7], [0, 8, 9]]);
/// let mask = Tensor::from_slice2(&[[1_i64, 1, 1], [0, 1, 1]]);
/// let inputs = Inputs::new(&ids).attention_mask(&mask).train(true);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Inputs<'a> {
    pub(super) ids: Option<&'a Tensor>,
    pub(super) pixel_values: Option<&'a Tensor>,
    pub(super) image_features: Option<&'a Tensor>,
    pub(super) image_sizes: Option<&'a Tensor>,
    /// In the place of the ids' embeddings, `[batch, length, size]`.
    pub(super) inputs_embeds: Option<&'a Tensor>,
    pub(super) pixel_attention_mask: Option<&'a Tensor>,
    /// `[batch, length]`, the number of the block that a place belongs to, whose places look at each other; 0: none.
    pub(super) blocks: Option<&'a Tensor>,
    pub(super) image_grid_thw: Option<&'a Tensor>,
    /// `[axes, batch, length]`, where places have positions of their own.
    pub(super) positions: Option<&'a Tensor>,
    /// Added to what the first blocks give, `[batch, length, size]` each.
    pub(super) added: &'a [Tensor],
    pub(super) attention_mask: Option<&'a Tensor>,
    pub(super) token_type_ids: Option<&'a Tensor>,
    pub(super) documents: Option<&'a Tensor>,
    pub(super) decoder_ids: Option<&'a Tensor>,
    pub(super) decoder_attention_mask: Option<&'a Tensor>,
    pub(super) train: bool,
    /// One for each row or document.
    pub(super) adapter_names: Option<AdapterNames<'a>>,
    /// The weights of the adapters that were named.
    pub(super) rows: Option<&'a Rows>,
}

impl<'a> Inputs<'a> {
    /// Token ids `[batch, length]`, Int64, on the model's device.
    #[doc(alias = "input_ids")]
    pub fn new(ids: &'a Tensor) -> Self {
        Inputs { ids: Some(ids), ..Inputs::default() }
    }

    /// Images `[batch, channels, height, width]`, in the model's kind and on its device.
    #[doc(alias = "pixel_values")]
    pub fn images(pixel_values: &'a Tensor) -> Self {
        Inputs { pixel_values: Some(pixel_values), ..Inputs::default() }
    }

    /// Token ids beside the images.
    pub fn input_ids(mut self, ids: impl Into<Option<&'a Tensor>>) -> Self {
        self.ids = ids.into();
        self
    }

    /// Images beside the ids: all images of the batch, in the order of the rows that they belong to.
    pub fn pixel_values(mut self, pixel_values: impl Into<Option<&'a Tensor>>) -> Self {
        self.pixel_values = pixel_values.into();
        self
    }

    /// `[images, height, width]`: 1 for the pixels of an image and 0 for what pads it, on the right and below. Default:
    /// no padding.
    pub fn pixel_attention_mask(mut self, mask: impl Into<Option<&'a Tensor>>) -> Self {
        self.pixel_attention_mask = mask.into();
        self
    }

    /// For images of any size, cut into patches: `[images, 3]`, Int64, the frames, rows and columns of patches of each.
    /// Their `pixel_values` are then those of all patches, `[patches, channels · frames · height · width]`.
    pub fn image_grid_thw(mut self, grids: impl Into<Option<&'a Tensor>>) -> Self {
        self.image_grid_thw = grids.into();
        self
    }

    /// Heights and widths of the images in pixels as they were, `[images, 2]`, Int64, for a model that sees them in
    /// tiles (llava_next): then all tiles of an image stand among the images one after the other, the whole image first.
    pub fn image_sizes(mut self, sizes: impl Into<Option<&'a Tensor>>) -> Self {
        self.image_sizes = sizes.into();
        self
    }

    /// In the place of images: what [`ImageTextToText::image_features`](super::ImageTextToText::image_features) gave
    /// for them.
    pub fn image_features(mut self, features: impl Into<Option<&'a Tensor>>) -> Self {
        self.image_features = features.into();
        self
    }

    /// `[batch, length]`: 1 for tokens and 0 for padding, on either side. Default: no padding.
    pub fn attention_mask(mut self, mask: impl Into<Option<&'a Tensor>>) -> Self {
        self.attention_mask = mask.into();
        self
    }

    /// `[batch, length]`, Int64: they tell the texts of a pair apart. Default: all 0.
    pub fn token_type_ids(mut self, types: impl Into<Option<&'a Tensor>>) -> Self {
        self.token_type_ids = types.into();
        self
    }

    /// Several documents packed into one row: `[batch, length]`, Int64, the number of the document that a token belongs
    /// to; each document is a run of one number, and padding has a number of its own, such as -1. Attention stays
    /// within a document and positions restart with it. In the place of `attention_mask`. Default: each row is one
    /// document.
    pub fn documents(mut self, documents: impl Into<Option<&'a Tensor>>) -> Self {
        self.documents = documents.into();
        self
    }

    /// Token ids `[batch, length]` of the decoder of an encoder-decoder.
    #[doc(alias = "decoder_input_ids")]
    pub fn decoder_ids(mut self, ids: impl Into<Option<&'a Tensor>>) -> Self {
        self.decoder_ids = ids.into();
        self
    }

    /// As [`attention_mask`](Self::attention_mask), for the decoder's ids.
    pub fn decoder_attention_mask(mut self, mask: impl Into<Option<&'a Tensor>>) -> Self {
        self.decoder_attention_mask = mask.into();
        self
    }

    /// Turns dropout on, for training. Default: off.
    pub fn train(mut self, train: bool) -> Self {
        self.train = train;
        self
    }

    /// The adapter of each row, by its name; `__base__` is the base without adapters. With [`documents`](Self::documents)
    /// there may be a name for each document instead, in their order; those of a number below 0 are padding, and have
    /// none. Default: the active adapter for all.
    ///
    /// The adapters are those of the [`LnTuningModel`](crate::LnTuningModel) that is attached to the model's variables.
    /// Each row is computed as under [`set_adapter`](crate::LnTuningModel::set_adapter): what its adapter does not tune
    /// is the base's. On the CPU the norms of a batch give, in f32, the same numbers, bit for bit. Modules that are no
    /// norms, such as a head of `modules_to_save`, compute the rows of each adapter by themselves, be they embeddings,
    /// tables of positions, patches or projections; all else is computed for all rows at once. A name costs no more than
    /// a copy of its norms' weights; an adapter is copied once and again when it has changed.
    ///
    /// An adapter takes its weights in f32, in the model's kind where that is another, and once more there as soon as a
    /// batch has named it: 8 bytes a weight in bf16, 4 with [`Precision::Model`](crate::Precision::Model), which serves
    /// as well where nothing is trained.
    ///
    /// ```
    /// # use tch::{nn::VarStore, Device, Tensor};
    /// use ln_tuning::models::{Decoder, DecoderConfig, Inputs, Model, ModelConfig};
    /// use ln_tuning::{LnTuningConfig, LnTuningModel};
    /// # let config = serde_json::json!({"model_type": "llama", "vocab_size": 20, "hidden_size": 8,
    /// #     "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2});
    /// # let config = DecoderConfig::from_value(&config)?;
    /// let vs = VarStore::new(Device::Cpu);
    /// let model = Decoder::new(&vs.root(), &config)?;
    /// let mut tuned = LnTuningModel::with_adapter_name(&vs, LnTuningConfig::default(), "poetry")?;
    /// tuned.add_adapter("prose", LnTuningConfig::default())?;
    /// let ids = Tensor::from_slice2(&[[1_i64, 2], [3, 4], [5, 6]]);
    /// let inputs = Inputs::new(&ids).adapter_names(&["poetry", "prose", "__base__"]);
    /// let logits = model.logits(inputs)?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    #[doc(alias = "mixed_batch")]
    pub fn adapter_names(mut self, names: impl Into<AdapterNames<'a>>) -> Self {
        self.adapter_names = Some(names.into());
        self
    }

    /// Refuses inputs that a model has no use for, and ids and masks that do not fit together.
    pub(super) fn check(&self, model: &str, taken: &[&str]) -> Result<()> {
        let given = [
            ("input_ids", self.ids),
            ("pixel_values", self.pixel_values),
            ("pixel_attention_mask", self.pixel_attention_mask),
            ("image_grid_thw", self.image_grid_thw),
            ("image_features", self.image_features),
            ("image_sizes", self.image_sizes),
            ("attention_mask", self.attention_mask),
            ("token_type_ids", self.token_type_ids),
            ("documents", self.documents),
            ("decoder_input_ids", self.decoder_ids),
            ("decoder_attention_mask", self.decoder_attention_mask),
        ];
        let unused =
            |(name, tensor): &&(&str, Option<&Tensor>)| tensor.is_some() && !taken.contains(name);
        if let Some((name, _)) = given.iter().find(unused) {
            refuse!(
                InvalidArgument,
                "{model} has no use for {name}; it takes {}",
                taken.join(", ")
            );
        }
        let decoder_mask = ("decoder_attention_mask", self.decoder_attention_mask);
        let of_ids = [
            ("attention_mask", self.attention_mask),
            ("token_type_ids", self.token_type_ids),
            ("documents", self.documents),
        ];
        check_ids("ids", self.ids, &of_ids)?;
        check_ids("decoder's ids", self.decoder_ids, &[decoder_mask])?;
        if self.attention_mask.is_some() && self.documents.is_some() {
            refuse!(
                InvalidArgument,
                "'attention_mask' and 'documents' are both given: give padding a document of its own"
            );
        }
        Ok(())
    }

    /// The ids, which must be there.
    pub(super) fn needed_ids(&self) -> Result<&'a Tensor> {
        self.ids.ok_or_else(|| missing("input_ids"))
    }

    /// The images, which must be there.
    pub(super) fn needed_images(&self) -> Result<&'a Tensor> {
        self.pixel_values.ok_or_else(|| missing("pixel_values"))
    }

    /// The images' heights and widths, which must be there.
    pub(super) fn needed_sizes(&self) -> Result<Vec<[i64; 2]>> {
        let sizes = self.image_sizes.ok_or_else(|| missing("image_sizes (beside pixel_values)"))?;
        let all = match sizes.size()[..] {
            [_, 2] => numbers_of(sizes, "image_sizes")?,
            _ => refuse!(
                ShapeMismatch,
                "'image_sizes' have shape {:?}, expected [images, 2]",
                sizes.size()
            ),
        };
        Ok(all.chunks_exact(2).map(|size| [size[0], size[1]]).collect())
    }

    /// The decoder's ids, which must be there.
    pub(super) fn needed_decoder_ids(&self) -> Result<&'a Tensor> {
        self.decoder_ids.ok_or_else(|| missing("decoder_input_ids"))
    }

    /// True where there is a token, `[batch, length]`.
    pub(super) fn tokens(&self) -> Result<Option<Tensor>> {
        Ok(self.attention_mask.map(|mask| mask.f_to_kind(Kind::Bool)).transpose()?)
    }
}

fn missing(name: &str) -> Error {
    refusal!(InvalidArgument, "{name} are missing, the model needs them")
}

fn check_ids(what: &str, ids: Option<&Tensor>, beside: &[(&str, Option<&Tensor>)]) -> Result<()> {
    let Some(size) = ids.map(Tensor::size) else { return Ok(()) };
    if size.len() != 2 {
        refuse!(ShapeMismatch, "the {what} have shape {size:?}, expected [batch, length]");
    }
    for (name, tensor) in beside {
        if let Some(found) = tensor.map(Tensor::size).filter(|found| *found != size) {
            refuse!(
                ShapeMismatch,
                "'{name}' has shape {found:?}, expected that of the {what}, {size:?}"
            );
        }
    }
    Ok(())
}

impl<'a> From<&'a Tensor> for Inputs<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        match tensor.f_kind() {
            Ok(Kind::Float | Kind::Double | Kind::BFloat16 | Kind::Half) => Inputs::images(tensor),
            _ => Inputs::new(tensor),
        }
    }
}
