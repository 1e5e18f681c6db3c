//! CLIP (arXiv 2103.00020), as transformers' `CLIPModel`: a tower for texts, a tower for images.

use std::sync::Arc;

use tch::nn::Init;
use tch::{Kind, Tensor};

use super::clip_config::ClipConfig;
use super::clip_tower::{ClipText, ClipVision};
use super::pair::{self, cosines};
use crate::autograd::recompute::Tape;
use crate::error::Result;
use crate::kernels::number::WithNumber;
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::nn::{Linear, Sites, Weights};

/// Both towers of a CLIP and what brings them together.
///
/// Variables are named as in transformers: `text_model.encoder.layers.0.layer_norm1.weight`, …. Those that the
/// `VarStore` holds already are used. Hidden states are those of the texts or of the images, whichever the inputs have;
/// logits tell how well each image goes with each text, `[images, texts]`.
///
/// ```no_run
/// use ln_tuning::models::{Clip, Inputs, Model};
/// # let ids = tch::Tensor::from_slice2(&[[1_i64, 2]]);
/// # let images = tch::Tensor::zeros([1, 3, 224, 224], (tch::Kind::Float, tch::Device::Cpu));
/// let (_vs, model) = Clip::from_pretrained("clip-vit-base-patch32", tch::Device::Cpu, None)?;
/// let logits = model.logits(Inputs::new(&ids).pixel_values(&images))?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[derive(Debug)]
#[doc(alias = "CLIPModel")]
pub struct Clip {
    config: ClipConfig,
    text: ClipText,
    vision: ClipVision,
    text_projection: Linear,
    visual_projection: Linear,
    logit_scale: Tensor,
    sites: Arc<Sites>,
}

impl Model for Clip {
    type Config = ClipConfig;

    fn build(weights: &Weights, config: &ClipConfig) -> Result<Self> {
        let (text, vision) = (&config.text.block, &config.vision.block);
        let projection = |name: &str, size: i64, init: Init| {
            Linear::build(&weights.at(name), (size, config.projection), false, init)
        };
        Ok(Clip {
            text: ClipText::build(&weights.at("text_model"), &config.text)?,
            vision: ClipVision::build(&weights.at("vision_model"), &config.vision)?,
            text_projection: projection("text_projection", text.size, text.init())?,
            visual_projection: projection("visual_projection", vision.size, vision.init())?,
            logit_scale: weights.tensor("logit_scale", &[], Init::Const(config.logit_scale))?,
            sites: weights.sites(),
            config: config.clone(),
        })
    }

    fn config(&self) -> &ClipConfig {
        &self.config
    }

    fn kind(&self) -> Kind {
        self.text.kind()
    }

    fn hidden_states_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        pair::hidden_states(&self.text, &self.vision, inputs, tape)
    }

    fn logits_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        inputs.check("clip", &["input_ids", "attention_mask", "pixel_values"])?;
        let rows = inputs.named_pairs(&self.sites)?;
        let (texts, images) = pair::parted(inputs.with_rows(rows.as_ref()));
        let images = self.image_features_with(images, tape)?;
        self.logits_per_image(&images, &self.text_features_with(texts, tape)?)
    }
}

impl Clip {
    /// Texts to features `[batch, projection_dim]`: the projected hidden state of the end token.
    ///
    /// # Errors
    /// As [`hidden_states`](Model::hidden_states).
    #[doc(alias = "get_text_features")]
    pub fn text_features<'a>(&self, inputs: impl Into<Inputs<'a>>) -> Result<Tensor> {
        self.text_features_with(inputs.into(), &mut Tape::off())
    }

    /// Images to features `[batch, projection_dim]`: the projected hidden state of the class token.
    ///
    /// # Errors
    /// As [`hidden_states`](Model::hidden_states).
    #[doc(alias = "get_image_features")]
    pub fn image_features<'a>(&self, inputs: impl Into<Inputs<'a>>) -> Result<Tensor> {
        self.image_features_with(inputs.into(), &mut Tape::off())
    }

    /// [`text_features`](Self::text_features) with block checkpointing.
    ///
    /// # Errors
    /// As [`hidden_states`](Model::hidden_states).
    pub fn text_features_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let hidden = self.text.hidden_states_with(inputs, tape)?;
        let _rows = inputs.enter();
        let ids = inputs.needed_ids()?;
        let at = match self.config.text.eos {
            // The first configurations have a wrong number; the end token is the highest of all.
            2 => ids.f_argmax(-1, false)?,
            eos => ids.f_eq_number(eos)?.f_to_kind(Kind::Int)?.f_argmax(-1, false)?,
        };
        let (batch, _, size) = hidden.size3()?;
        let at = at.f_view([batch, 1, 1])?.f_expand([batch, 1, size], false)?;
        self.text_projection.forward(&hidden.f_gather(1, &at, false)?.f_squeeze_dim(1)?)
    }

    /// [`image_features`](Self::image_features) with block checkpointing.
    ///
    /// # Errors
    /// As [`hidden_states`](Model::hidden_states).
    pub fn image_features_with<'m>(
        &'m self,
        inputs: Inputs,
        tape: &mut Tape<'m>,
    ) -> Result<Tensor> {
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let hidden = self.vision.hidden_states_with(inputs, tape)?;
        let _rows = inputs.enter();
        let class = hidden.f_select(1, 0)?;
        self.visual_projection.forward(&self.vision.last_norm.forward(&class)?)
    }

    /// Logits `[images, texts]` from features of both: their cosines times the learned scale.
    ///
    /// # Errors
    /// `Torch` for features of another shape, kind or device.
    pub fn logits_per_image(
        &self,
        image_features: &Tensor,
        text_features: &Tensor,
    ) -> Result<Tensor> {
        let cosines = cosines(image_features, text_features)?;
        Ok(cosines.f_mul(&self.logit_scale.f_exp()?)?)
    }
}
