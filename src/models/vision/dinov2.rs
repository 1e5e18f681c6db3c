//! DINOv2 (arXiv 2304.07193), as transformers' `Dinov2Model` and `Dinov2ForImageClassification`.

use std::sync::Arc;

use serde_json::Value;
use tch::nn::Init;
use tch::{Kind, Tensor};

use super::block::{BlockNames, BlockShape};
use super::patches::{Grid, Patches};
use crate::autograd::recompute::Tape;
use crate::error::{refuse, Result};
use crate::models::config::{
    declared, flag, layers_or, not_implemented, number, size_or, text, Declared, ModelConfig,
};
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::nn::{
    dropped, run_all, Activation, Block, Linear, Mask, Norm, NormKind, Sites, Weights,
};
use crate::pretrained::Head;

const HEADS: &[Head] = &[Head::None, Head::ImageClassification];

/// The shape and the options of a DINOv2, read from a `config.json` of transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct Dinov2Config {
    declared: Declared,
    block: BlockShape,
    layers: i64,
    grid: Grid,
    gated: bool,
    mask_token: bool,
    embedding_dropout: f64,
}

impl ModelConfig for Dinov2Config {
    const CLASSIFIER: Head = Head::ImageClassification;

    fn model_types() -> Vec<&'static str> {
        vec!["dinov2"]
    }

    fn from_value(config: &Value) -> Result<Self> {
        let declared = Declared::read(config, &Self::model_types(), HEADS, Head::None)?;
        if number(config, "drop_path_rate", 0.)? != 0. {
            return not_implemented("'drop_path_rate' other than 0");
        }
        let size = size_or(config, "hidden_size", 768)?;
        let gated = flag(config, "use_swiglu_ffn", false)?;
        let inner = (size as f64 * number(config, "mlp_ratio", 4.)?) as i64;
        let activation = Activation::named(text(config, "hidden_act", "gelu")?, "hidden_act")?;
        let read = Dinov2Config {
            declared,
            block: BlockShape {
                size,
                // Two thirds, rounded up to a multiple of 8.
                inner: if gated { ((inner as f64 * 2. / 3.) as i64 + 7) / 8 * 8 } else { inner },
                heads: size_or(config, "num_attention_heads", 12)?,
                qkv_bias: flag(config, "qkv_bias", true)?,
                norm: NormKind::Layer,
                norm_eps: number(config, "layer_norm_eps", 1e-6)?,
                activation: if gated { Activation::Silu } else { activation },
                dropout: 0.,
                attention_dropout: number(config, "attention_probs_dropout_prob", 0.)?,
                scale: number(config, "layerscale_value", 1.)?,
                initializer_range: number(config, "initializer_range", 0.02)?,
            },
            layers: layers_or(config, "num_hidden_layers", 12)?,
            grid: Grid::read(config, 14)?,
            gated,
            mask_token: flag(config, "use_mask_token", true)?,
            embedding_dropout: number(config, "hidden_dropout_prob", 0.)?,
        };
        read.block.check()?;
        Ok(read)
    }

    declared!();
}

/// A DINOv2 with or without a classifier.
///
/// Variables are named as in transformers: `dinov2.encoder.layer.0.norm1.weight` with a classifier,
/// `encoder.layer.0.norm1.weight` without. Those that the `VarStore` holds already are used.
///
/// Height and width of images are multiples of the patch's; position embeddings are interpolated where they are not
/// those of the configuration. The hidden states are those of the class token, then those of the patches; a classifier
/// sees the class token and the mean of the patches.
#[derive(Debug)]
pub struct Dinov2 {
    config: Dinov2Config,
    patches: Patches,
    blocks: Vec<Block>,
    norm: Norm,
    classifier: Option<Linear>,
    sites: Arc<Sites>,
}

const NAMES: BlockNames = BlockNames {
    norms: ["norm1", "norm2"],
    qkv: &["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    o: "attention.o_proj",
    inner: &["mlp.fc1"],
    outer: "mlp.fc2",
    scales: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"]),
};
const GATED: BlockNames =
    BlockNames { inner: &["mlp.gate_proj", "mlp.up_proj"], outer: "mlp.down_proj", ..NAMES };

impl Model for Dinov2 {
    type Config = Dinov2Config;

    fn build(weights: &Weights, config: &Dinov2Config) -> Result<Self> {
        let (shape, head) = (&config.block, config.head());
        let base = if head == Head::None { weights.clone() } else { weights.at("dinov2") };
        let embeddings = base.at("embeddings");
        if config.mask_token {
            // Of pre-training.
            let _ = embeddings.by_row("mask_token", &[1, shape.size], Init::Const(0.))?;
        }
        let names = if config.gated { GATED } else { NAMES };
        let classes = (2 * shape.size, config.labels().len() as i64);
        let classifier = || Linear::build(&weights.at("classifier"), classes, true, shape.init());
        Ok(Dinov2 {
            patches: Patches::build(&embeddings, config.grid, shape)?,
            blocks: shape.blocks(&base.at("encoder.layer"), &names, config.layers)?,
            norm: shape.norm(&base.at("layernorm"))?,
            classifier: (head != Head::None).then(classifier).transpose()?,
            sites: weights.sites(),
            config: config.clone(),
        })
    }

    fn config(&self) -> &Dinov2Config {
        &self.config
    }

    fn kind(&self) -> Kind {
        self.patches.kind()
    }

    fn hidden_states_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        inputs.check("dinov2", &["pixel_values"])?;
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let _rows = inputs.enter();
        let images = inputs.needed_images()?;
        let hidden = self.patches.forward(images, &self.patches.positions_for(images)?)?;
        let hidden = dropped(hidden, self.config.embedding_dropout, inputs.train)?;
        let last = Some(&self.norm);
        run_all(&self.blocks, hidden, Mask::Everything, inputs.train, last, tape)
    }

    fn logits_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        let Some(classifier) = &self.classifier else {
            refuse!(InvalidState, "this model has no classifier: its architecture is Dinov2Model");
        };
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let hidden = self.hidden_states_with(inputs, tape)?;
        let _rows = inputs.enter();
        let patches = hidden.f_narrow(1, 1, hidden.size()[1] - 1)?;
        let mean = patches.f_mean_dim([1_i64].as_slice(), false, hidden.f_kind()?)?;
        classifier.forward(&Tensor::f_cat(&[&hidden.f_select(1, 0)?, &mean], 1)?)
    }
}
