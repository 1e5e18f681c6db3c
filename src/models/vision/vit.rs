//! The vision transformer of Dosovitskiy et al. (arXiv 2010.11929), as transformers' `ViTForImageClassification`.

use std::sync::Arc;

use serde_json::Value;
use tch::nn::ModuleT;
use tch::{Kind, Tensor};

use super::block::{BlockNames, BlockShape};
use super::patches::{Grid, Patches};
use crate::autograd::recompute::Tape;
use crate::error::Result;
use crate::models::config::{
    check_divides, declared, flag, layers_or, number, size_or, text, Declared, ModelConfig,
};
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::nn::{
    dropped, run_all, Activation, Block, Linear, Mask, Norm, NormKind, Sites, Weights,
};
use crate::pretrained::Head;

/// The shape and the options of a ViT, read from a `config.json` of transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct ViTConfig {
    declared: Declared,
    block: BlockShape,
    layers: i64,
    grid: Grid,
}

impl ModelConfig for ViTConfig {
    const CLASSIFIER: Head = Head::ImageClassification;

    fn model_types() -> Vec<&'static str> {
        vec!["vit"]
    }

    fn from_value(config: &Value) -> Result<Self> {
        let (heads, head) = (&[Head::ImageClassification], Head::ImageClassification);
        let activation = Activation::named(text(config, "hidden_act", "gelu")?, "hidden_act")?;
        let read = ViTConfig {
            declared: Declared::read(config, &Self::model_types(), heads, head)?,
            block: BlockShape {
                size: size_or(config, "hidden_size", 768)?,
                inner: size_or(config, "intermediate_size", 3072)?,
                heads: size_or(config, "num_attention_heads", 12)?,
                qkv_bias: flag(config, "qkv_bias", true)?,
                norm: NormKind::Layer,
                norm_eps: number(config, "layer_norm_eps", 1e-12)?,
                activation,
                dropout: number(config, "hidden_dropout_prob", 0.)?,
                attention_dropout: number(config, "attention_probs_dropout_prob", 0.)?,
                scale: 1.,
                initializer_range: number(config, "initializer_range", 0.02)?,
            },
            layers: layers_or(config, "num_hidden_layers", 12)?,
            grid: Grid::read(config, 16)?,
        };
        read.block.check()?;
        let Grid { image_size, patch_size, .. } = read.grid;
        check_divides(("patch_size", patch_size), ("image_size", image_size))?;
        Ok(read)
    }

    declared!();
}

/// An image classifier: patches, blocks with LayerNorm in front of attention and MLP, a linear head on `[CLS]`.
///
/// Variables are named as in transformers 5: `vit.layers.0.layernorm_before.weight`, …, `classifier.bias`.
///
/// ```no_run
/// use ln_tuning::models::{Load, Model, ViTForImageClassification};
/// # let images = tch::Tensor::zeros([1, 3, 224, 224], (tch::Kind::Float, tch::Device::Cpu));
/// let load = Load::on(tch::Device::Cpu).labels(["cat", "dog"]);
/// let (vs, model) = ViTForImageClassification::from_pretrained_with("vit-base", &load)?;
/// let classes = model.logits(&images)?.argmax(-1, false);
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[derive(Debug)]
pub struct ViTForImageClassification {
    config: ViTConfig,
    patches: Patches,
    blocks: Vec<Block>,
    norm: Norm,
    classifier: Linear,
    sites: Arc<Sites>,
}

const NAMES: BlockNames = BlockNames {
    norms: ["layernorm_before", "layernorm_after"],
    qkv: &["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    o: "attention.o_proj",
    inner: &["mlp.fc1"],
    outer: "mlp.fc2",
    scales: None,
};

impl Model for ViTForImageClassification {
    type Config = ViTConfig;

    fn build(weights: &Weights, config: &ViTConfig) -> Result<Self> {
        let (shape, base) = (&config.block, weights.at("vit"));
        let classes = (shape.size, config.labels().len() as i64);
        Ok(ViTForImageClassification {
            patches: Patches::build(&base.at("embeddings"), config.grid, shape)?,
            blocks: shape.blocks(&base.at("layers"), &NAMES, config.layers)?,
            norm: shape.norm(&base.at("layernorm"))?,
            classifier: Linear::build(&weights.at("classifier"), classes, true, shape.init())?,
            sites: weights.sites(),
            config: config.clone(),
        })
    }

    fn config(&self) -> &ViTConfig {
        &self.config
    }

    fn kind(&self) -> Kind {
        self.patches.kind()
    }

    fn hidden_states_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        inputs.check("vit", &["pixel_values"])?;
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let _rows = inputs.enter();
        let images = inputs.needed_images()?;
        self.config.grid.check_images(images)?;
        let hidden = self.patches.forward(images, &self.patches.positions_for(images)?)?;
        let hidden = dropped(hidden, self.config.block.dropout, inputs.train)?;
        let last = Some(&self.norm);
        run_all(&self.blocks, hidden, Mask::Everything, inputs.train, last, tape)
    }

    fn logits_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let hidden = self.hidden_states_with(inputs, tape)?;
        let _rows = inputs.enter();
        self.classifier.forward(&hidden.f_select(1, 0)?)
    }
}

/// For pipelines that are built of tch's modules. Panics where [`logits`](Model::logits) fails.
impl ModuleT for ViTForImageClassification {
    fn forward_t(&self, pixel_values: &Tensor, train: bool) -> Tensor {
        match self.logits(Inputs::images(pixel_values).train(train)) {
            Ok(logits) => logits,
            Err(error) => panic!("{error}"),
        }
    }
}
