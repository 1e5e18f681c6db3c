//! The towers of CLIP: one for texts, one for images.

use std::sync::Arc;

use tch::{Kind, Tensor};

use super::block::BlockNames;
use super::clip_config::{ClipTextConfig, ClipVisionConfig};
use super::patches::Patches;
use super::text_embeddings::TextEmbeddings;
use crate::autograd::recompute::Tape;
use crate::error::{refusal, Result};
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::nn::{run_all, run_to, Block, Mask, Norm, Places, Sites, Weights};

pub(super) const NAMES: BlockNames = BlockNames {
    norms: ["layer_norm1", "layer_norm2"],
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    o: "self_attn.out_proj",
    inner: &["mlp.fc1"],
    outer: "mlp.fc2",
    scales: None,
};

/// The tower for texts. Its hidden states are those behind the last norm. Files of both towers open too.
#[derive(Debug)]
#[doc(alias = "CLIPTextModel")]
pub struct ClipText {
    config: ClipTextConfig,
    embeddings: TextEmbeddings,
    blocks: Vec<Block>,
    norm: Norm,
    sites: Arc<Sites>,
}

/// The tower for images. Its hidden states, the class token's first, are those in front of the last norm. Files of both
/// towers open too.
#[derive(Debug)]
#[doc(alias = "CLIPVisionModel")]
pub struct ClipVision {
    config: ClipVisionConfig,
    patches: Patches,
    norm: Norm,
    blocks: Vec<Block>,
    pub(super) last_norm: Norm,
    sites: Arc<Sites>,
}

impl Model for ClipText {
    type Config = ClipTextConfig;

    fn build(weights: &Weights, config: &ClipTextConfig) -> Result<Self> {
        let shape = &config.block;
        let places = (config.vocab_size, config.max_positions);
        Ok(ClipText {
            embeddings: TextEmbeddings::build(&weights.at("embeddings"), places, shape)?,
            blocks: shape.blocks(&weights.at("encoder.layers"), &NAMES, config.layers)?,
            norm: shape.norm(&weights.at("final_layer_norm"))?,
            sites: weights.sites(),
            config: config.clone(),
        })
    }

    fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    fn kind(&self) -> Kind {
        self.embeddings.kind()
    }

    fn hidden_states_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        inputs.check("CLIP's text tower", &["input_ids", "attention_mask"])?;
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let _rows = inputs.enter();
        let (ids, tokens) = (inputs.needed_ids()?, inputs.tokens()?);
        let hidden = self.embeddings.forward(ids)?;
        let places = Places {
            start: 0,
            length: ids.size2()?.1,
            device: ids.device(),
            tokens: tokens.as_ref(),
            documents: None,
            blocks: None,
        };
        let mask = Mask::causal(&places, None)?;
        let last = Some(&self.norm);
        run_all(&self.blocks, hidden, mask, inputs.train, last, tape)
    }

    fn logits_with<'m>(&'m self, _: Inputs, _: &mut Tape<'m>) -> Result<Tensor> {
        no_logits()
    }
}

impl Model for ClipVision {
    type Config = ClipVisionConfig;

    fn build(weights: &Weights, config: &ClipVisionConfig) -> Result<Self> {
        let shape = &config.block;
        Ok(ClipVision {
            patches: Patches::build_clip(&weights.at("embeddings"), config.grid, shape)?,
            // The name is transformers'.
            norm: shape.norm(&weights.at("pre_layrnorm"))?,
            blocks: shape.blocks(&weights.at("encoder.layers"), &NAMES, config.layers)?,
            last_norm: shape.norm(&weights.at("post_layernorm"))?,
            sites: weights.sites(),
            config: config.clone(),
        })
    }

    fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    fn kind(&self) -> Kind {
        self.patches.kind()
    }

    fn hidden_states_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        inputs.check("CLIP's image tower", &["pixel_values"])?;
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let _rows = inputs.enter();
        let hidden = self.embedded(inputs.needed_images()?)?;
        run_all(&self.blocks, hidden, Mask::Everything, inputs.train, None, tape)
    }

    fn logits_with<'m>(&'m self, _: Inputs, _: &mut Tape<'m>) -> Result<Tensor> {
        no_logits()
    }
}

impl ClipVision {
    /// The hidden states behind so many blocks each, in this order; none stands for the first block's input. Blocks
    /// above the highest are not run.
    pub(super) fn hidden_states_at<'m>(
        &'m self,
        images: &Tensor,
        depths: &[usize],
        train: bool,
        tape: &mut Tape<'m>,
    ) -> Result<Vec<Tensor>> {
        run_to(&self.blocks, self.embedded(images)?, depths, train, tape)
    }

    /// The input of the first block.
    fn embedded(&self, images: &Tensor) -> Result<Tensor> {
        self.config.grid.check_images(images)?;
        self.norm.forward(&self.patches.forward(images, &self.patches.positions_for(images)?)?)
    }
}

fn no_logits() -> Result<Tensor> {
    Err(refusal!(
        InvalidState,
        "a tower of CLIP has no head, so there are no logits: ask for hidden_states"
    ))
}
