//! SigLIP (arXiv 2303.15343) and its successor at a fixed resolution (arXiv 2502.14786): transformers' `SiglipModel`.

use std::sync::Arc;

use tch::nn::Init;
use tch::{Kind, Tensor};

use super::pair::{self, cosines};
use super::siglip_config::SiglipConfig;
use super::siglip_tower::{SiglipText, SiglipVision};
use crate::autograd::recompute::Tape;
use crate::error::Result;
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::nn::{Sites, Weights};

/// Both towers of a SigLIP and what brings them together.
///
/// Variables are named as in transformers: `text_model.encoder.layers.0.layer_norm1.weight`, …. Those that the
/// `VarStore` holds already are used. Hidden states are those of the texts or of the images, whichever the inputs have;
/// logits tell how well each image goes with each text, `[images, texts]`: their sigmoids are probabilities.
///
/// ```no_run
/// use ln_tuning::models::{Inputs, Model, Siglip};
/// # let ids = tch::Tensor::from_slice2(&[[1_i64, 2]]);
/// # let images = tch::Tensor::zeros([1, 3, 224, 224], (tch::Kind::Float, tch::Device::Cpu));
/// let (_vs, model) = Siglip::from_pretrained("siglip-base-patch16-224", tch::Device::Cpu, None)?;
/// let logits = model.logits(Inputs::new(&ids).pixel_values(&images))?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[derive(Debug)]
#[doc(alias = "SiglipModel")]
pub struct Siglip {
    config: SiglipConfig,
    text: SiglipText,
    vision: SiglipVision,
    /// `[1]` each
    logit_scale: Tensor,
    logit_bias: Tensor,
    sites: Arc<Sites>,
}

impl Model for Siglip {
    type Config = SiglipConfig;

    fn build(weights: &Weights, config: &SiglipConfig) -> Result<Self> {
        let number = |name: &str| weights.tensor(name, &[1], Init::Const(0.));
        Ok(Siglip {
            text: SiglipText::build(&weights.at("text_model"), &config.text)?,
            vision: SiglipVision::build(&weights.at("vision_model"), &config.vision)?,
            logit_scale: number("logit_scale")?,
            logit_bias: number("logit_bias")?,
            sites: weights.sites(),
            config: config.clone(),
        })
    }

    fn config(&self) -> &SiglipConfig {
        &self.config
    }

    fn kind(&self) -> Kind {
        self.text.kind()
    }

    fn hidden_states_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        pair::hidden_states(&self.text, &self.vision, inputs, tape)
    }

    fn logits_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        inputs.check("siglip", &["input_ids", "attention_mask", "pixel_values"])?;
        let rows = inputs.named_pairs(&self.sites)?;
        let (texts, images) = pair::parted(inputs.with_rows(rows.as_ref()));
        let images = self.image_features_with(images, tape)?;
        self.logits_per_image(&images, &self.text_features_with(texts, tape)?)
    }
}

impl Siglip {
    /// Texts to features `[batch, projection_size]`: the projected hidden state of the last place, be it padding.
    ///
    /// # Errors
    /// As [`hidden_states`](Model::hidden_states).
    #[doc(alias = "get_text_features")]
    pub fn text_features<'a>(&self, inputs: impl Into<Inputs<'a>>) -> Result<Tensor> {
        self.text_features_with(inputs.into(), &mut Tape::off())
    }

    /// Images to features `[batch, hidden_size]`, by the head that pools the patches.
    ///
    /// # Errors
    /// As [`SiglipVision::features`].
    #[doc(alias = "get_image_features")]
    pub fn image_features<'a>(&self, inputs: impl Into<Inputs<'a>>) -> Result<Tensor> {
        self.image_features_with(inputs.into(), &mut Tape::off())
    }

    /// [`text_features`](Self::text_features) with block checkpointing.
    ///
    /// # Errors
    /// As [`hidden_states`](Model::hidden_states).
    pub fn text_features_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        self.text.features(inputs, tape)
    }

    /// [`image_features`](Self::image_features) with block checkpointing.
    ///
    /// # Errors
    /// As [`SiglipVision::features`].
    pub fn image_features_with<'m>(
        &'m self,
        inputs: Inputs,
        tape: &mut Tape<'m>,
    ) -> Result<Tensor> {
        self.vision.features_with(inputs, tape)
    }

    /// Logits `[images, texts]` from features of both: their cosines times the learned scale, plus the learned bias.
    ///
    /// # Errors
    /// `Torch` for features of another shape, kind or device.
    pub fn logits_per_image(
        &self,
        image_features: &Tensor,
        text_features: &Tensor,
    ) -> Result<Tensor> {
        let cosines = cosines(image_features, text_features)?;
        Ok(cosines.f_mul(&self.logit_scale.f_exp()?)?.f_add(&self.logit_bias)?)
    }
}
