//! The towers of SigLIP: one for texts, one for images.

use std::sync::Arc;

use tch::{Kind, Tensor};

use super::clip_tower::NAMES;
use super::patch_mask::PatchMask;
use super::patches::Patches;
use super::pooling::Pooling;
use super::siglip_config::{SiglipTextConfig, SiglipVisionConfig};
use super::text_embeddings::TextEmbeddings;
use crate::autograd::recompute::Tape;
use crate::error::{refusal, Result};
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::nn::{run_all, run_to, Block, Linear, Mask, Norm, Sites, Weights};

/// The tower for texts. Its hidden states are those behind the last norm.
///
/// Each token looks at all others. Features are those of the last place, be it padding: SigLIPs have learned from texts
/// padded to `max_position_embeddings`, without an attention mask.
#[derive(Debug)]
#[doc(alias = "SiglipTextModel")]
pub struct SiglipText {
    config: SiglipTextConfig,
    embeddings: TextEmbeddings,
    blocks: Vec<Block>,
    norm: Norm,
    head: Linear,
    sites: Arc<Sites>,
}

/// The tower for images. Its hidden states, one per patch, are those behind the last norm.
///
/// Height and width of images are multiples of the patch's; position embeddings are interpolated where they are not
/// those of the configuration.
#[derive(Debug)]
#[doc(alias = "SiglipVisionModel")]
pub struct SiglipVision {
    config: SiglipVisionConfig,
    patches: Patches,
    blocks: Vec<Block>,
    norm: Norm,
    head: Option<Pooling>,
    sites: Arc<Sites>,
}

impl Model for SiglipText {
    type Config = SiglipTextConfig;

    fn build(weights: &Weights, config: &SiglipTextConfig) -> Result<Self> {
        let shape = &config.block;
        let places = (config.vocab_size, config.max_positions);
        let projection = (shape.size, config.projection);
        Ok(SiglipText {
            embeddings: TextEmbeddings::build(&weights.at("embeddings"), places, shape)?,
            blocks: shape.blocks(&weights.at("encoder.layers"), &NAMES, config.layers)?,
            norm: shape.norm(&weights.at("final_layer_norm"))?,
            head: Linear::build(&weights.at("head"), projection, true, shape.init())?,
            sites: weights.sites(),
            config: config.clone(),
        })
    }

    fn config(&self) -> &SiglipTextConfig {
        &self.config
    }

    fn kind(&self) -> Kind {
        self.embeddings.kind()
    }

    fn hidden_states_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        inputs.check("SigLIP's text tower", &["input_ids", "attention_mask"])?;
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let _rows = inputs.enter();
        let hidden = self.embeddings.forward(inputs.needed_ids()?)?;
        let mask = Mask::tokens(inputs.attention_mask)?;
        let last = Some(&self.norm);
        run_all(&self.blocks, hidden, mask, inputs.train, last, tape)
    }

    fn logits_with<'m>(&'m self, _: Inputs, _: &mut Tape<'m>) -> Result<Tensor> {
        no_logits()
    }
}

impl SiglipText {
    /// Texts to features `[batch, projection_size]`.
    pub(super) fn features<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let hidden = self.hidden_states_with(inputs, tape)?;
        let _rows = inputs.enter();
        self.head.forward(&hidden.f_select(1, -1)?)
    }
}

impl Model for SiglipVision {
    type Config = SiglipVisionConfig;

    fn build(weights: &Weights, config: &SiglipVisionConfig) -> Result<Self> {
        let shape = &config.block;
        let head = || Pooling::build(&weights.at("head"), shape);
        Ok(SiglipVision {
            patches: Patches::build_siglip(&weights.at("embeddings"), config.grid, shape)?,
            blocks: shape.blocks(&weights.at("encoder.layers"), &NAMES, config.layers)?,
            norm: shape.norm(&weights.at("post_layernorm"))?,
            head: config.pools.then(head).transpose()?,
            sites: weights.sites(),
            config: config.clone(),
        })
    }

    fn config(&self) -> &SiglipVisionConfig {
        &self.config
    }

    fn kind(&self) -> Kind {
        self.patches.kind()
    }

    fn hidden_states_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        let mut taken = vec!["pixel_values"];
        taken.extend(self.config.pads.then_some("pixel_attention_mask"));
        inputs.check("SigLIP's image tower", &taken)?;
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let _rows = inputs.enter();
        let (hidden, mask) = self.embedded(&inputs)?;
        let last = Some(&self.norm);
        run_all(&self.blocks, hidden, mask, inputs.train, last, tape)
    }

    fn logits_with<'m>(&'m self, _: Inputs, _: &mut Tape<'m>) -> Result<Tensor> {
        no_logits()
    }
}

impl SiglipVision {
    /// The hidden states behind so many blocks each, in this order; none stands for the first block's input. Blocks
    /// above the highest are not run.
    pub(super) fn hidden_states_at<'m>(
        &'m self,
        images: &Tensor,
        depths: &[usize],
        train: bool,
        tape: &mut Tape<'m>,
    ) -> Result<Vec<Tensor>> {
        let (hidden, _) = self.embedded(&Inputs::images(images))?;
        run_to(&self.blocks, hidden, depths, train, tape)
    }

    /// The input of the first block, and the patches that are seen.
    fn embedded(&self, inputs: &Inputs) -> Result<(Tensor, Mask)> {
        let images = inputs.needed_images()?;
        if !self.config.pads {
            let positions = self.patches.positions_for(images)?;
            return Ok((self.patches.forward(images, &positions)?, Mask::Everything));
        }
        let seen = PatchMask::of(inputs, &self.config.grid)?;
        let positions = self.patches.positions_at(&seen.positions(&self.config.grid)?)?;
        Ok((self.patches.forward(images, &positions)?, seen.mask()?))
    }

    /// Images to features `[batch, hidden_size]`, by the head that pools the patches.
    ///
    /// # Errors
    /// As [`hidden_states`](Model::hidden_states); `InvalidState` for a tower without that head.
    #[doc(alias = "pooler_output")]
    pub fn features<'a>(&self, inputs: impl Into<Inputs<'a>>) -> Result<Tensor> {
        self.features_with(inputs.into(), &mut Tape::off())
    }

    /// [`features`](Self::features) with block checkpointing.
    ///
    /// # Errors
    /// As [`features`](Self::features).
    pub fn features_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        let head = self.head.as_ref().ok_or_else(|| {
            refusal!(
                InvalidState,
                "this tower has no head that pools its patches ('vision_use_head' is false): ask for hidden_states"
            )
        })?;
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let hidden = self.hidden_states_with(inputs, tape)?;
        let _rows = inputs.enter();
        head.forward(&hidden)
    }
}

fn no_logits() -> Result<Tensor> {
    Err(refusal!(
        InvalidState,
        "a tower of SigLIP has no classifier, so there are no logits: ask for hidden_states"
    ))
}
