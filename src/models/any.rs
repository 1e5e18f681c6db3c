//! Any model: the one that a directory holds.

use std::path::Path;

use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::config::ModelConfig;
use super::decoder::{Decoder, DecoderConfig};
use super::encoder::{Encoder, EncoderConfig};
use super::inputs::Inputs;
use super::model::{Load, Model};
use super::multimodal::{refuse_original, ImageTextToText, ImageTextToTextConfig};
use super::seq2seq::{Seq2Seq, Seq2SeqConfig};
use super::vision::{
    Clip, ClipConfig, ClipVision, ClipVisionConfig, Dinov2, Dinov2Config, Siglip, SiglipConfig,
    SiglipVision, SiglipVisionConfig, TowerClassifier, TowerClassifierConfig, ViTConfig,
    ViTForImageClassification,
};
use crate::autograd::recompute::Tape;
use crate::error::{refusal, Error, Result};
use crate::pretrained::{BaseBytes, ModelFiles};

/// The models, a row each: the variant, a line about it, its type and its configuration's.
macro_rules! models {
    ($($variant:ident, $about:literal, $model:ty, $config:ty;)*) => {
        /// One of the models, by the `model_type` of a directory's `config.json`.
        ///
        /// ```no_run
        /// use ln_tuning::models::AnyModel;
        /// # let ids = tch::Tensor::from_slice2(&[[1_i64, 2]]);
        /// let (vs, model) = AnyModel::from_pretrained("some-model", tch::Device::Cpu, None)?;
        /// println!("{}: {:?}", model.model_type(), model.logits(&ids)?.size());
        /// # Ok::<(), ln_tuning::Error>(())
        /// ```
        #[doc(alias = "AutoModel")]
        #[derive(Debug)]
        #[non_exhaustive]
        pub enum AnyModel {
            $(#[doc = $about] $variant(Box<$model>),)*
        }

        impl AnyModel {
            /// The `model_type`s that are known, in alphabetical order.
            pub fn model_types() -> Vec<&'static str> {
                let mut all = Vec::new();
                $(all.extend(<$config>::model_types());)*
                all.sort_unstable();
                all.dedup();
                all
            }

            /// As [`Model::from_files`], for whichever model it is.
            ///
            /// # Errors
            /// `Unsupported` for a `model_type` that is none of [`model_types`](Self::model_types); otherwise as the
            /// model's own.
            pub fn from_files(files: ModelFiles, load: &Load) -> Result<(VarStore, Self)> {
                for any_head in [false, true] {
                    $(if is_of::<$config>(&files, load, any_head) {
                        let (vs, model) = <$model>::from_files(files, load)?;
                        return Ok((vs, AnyModel::$variant(Box::new(model))));
                    })*
                }
                Err(Self::unknown(&files))
            }

            /// As [`Model::base_bytes`], for whichever model it is.
            ///
            /// # Errors
            /// As [`from_files`](Self::from_files).
            pub fn base_bytes(files: ModelFiles, load: &Load) -> Result<BaseBytes> {
                for any_head in [false, true] {
                    $(if is_of::<$config>(&files, load, any_head) {
                        return <$model>::base_bytes(files, load);
                    })*
                }
                Err(Self::unknown(&files))
            }

            /// The `model_type`, such as `llama`.
            pub fn model_type(&self) -> &str {
                match self {
                    $(AnyModel::$variant(model) => model.model_type(),)*
                }
            }

            /// The `config.json` that transformers reads.
            pub fn config(&self) -> Value {
                match self {
                    $(AnyModel::$variant(model) => model.config().to_value(),)*
                }
            }

            /// The kind of the weights, which images must have too.
            pub fn kind(&self) -> Kind {
                match self {
                    $(AnyModel::$variant(model) => model.kind(),)*
                }
            }

            /// As [`Model::hidden_states_with`].
            ///
            /// # Errors
            /// As the model's own.
            pub fn hidden_states_with<'m>(
                &'m self,
                inputs: Inputs,
                tape: &mut Tape<'m>,
            ) -> Result<Tensor> {
                match self {
                    $(AnyModel::$variant(model) => model.hidden_states_with(inputs, tape),)*
                }
            }

            /// As [`Model::logits_with`].
            ///
            /// # Errors
            /// As the model's own.
            pub fn logits_with<'m>(
                &'m self,
                inputs: Inputs,
                tape: &mut Tape<'m>,
            ) -> Result<Tensor> {
                match self {
                    $(AnyModel::$variant(model) => model.logits_with(inputs, tape),)*
                }
            }
        }
    };
}

models! {
    Decoder, "A decoder-only language model.", Decoder, DecoderConfig;
    Encoder, "A text encoder.", Encoder, EncoderConfig;
    Seq2Seq, "An encoder-decoder.", Seq2Seq, Seq2SeqConfig;
    ViT, "An image classifier.", ViTForImageClassification, ViTConfig;
    Dinov2, "A DINOv2, with or without a classifier.", Dinov2, Dinov2Config;
    Clip, "A CLIP.", Clip, ClipConfig;
    ClipVision, "The tower for images of a CLIP.", ClipVision, ClipVisionConfig;
    Siglip, "A SigLIP.", Siglip, SiglipConfig;
    SiglipVision, "The tower for images of a SigLIP.", SiglipVision, SiglipVisionConfig;
    TowerClassifier, "The tower for images of a CLIP or a SigLIP as a classifier.", TowerClassifier,
        TowerClassifierConfig;
    ImageTextToText, "A model of images and texts.", ImageTextToText, ImageTextToTextConfig;
}

/// True if files are of a model with this configuration. Of those that share a model type it is the one with the head;
/// if none has it, the first says what heads there are.
fn is_of<C: ModelConfig>(files: &ModelFiles, load: &Load, any_head: bool) -> bool {
    let model_type = files.model_type().unwrap_or_default();
    C::model_types().contains(&model_type) && (any_head || C::has_head(load.head_of::<C>(files)))
}

impl AnyModel {
    /// As [`Model::from_pretrained`], for whichever model it is.
    ///
    /// # Errors
    /// As [`from_files`](Self::from_files).
    pub fn from_pretrained(
        dir: impl AsRef<Path>,
        device: Device,
        kind: impl Into<Option<Kind>>,
    ) -> Result<(VarStore, Self)> {
        Self::from_files(ModelFiles::open(dir)?, &Load::on(device).kind(kind))
    }

    fn unknown(files: &ModelFiles) -> Error {
        if let Err(error) = refuse_original(files.config()) {
            return error;
        }
        refusal!(
            Unsupported,
            "'{}' has the model_type '{}', expected one of {}",
            files.dir().display(),
            files.model_type().unwrap_or_default(),
            Self::model_types().join(", ")
        )
    }

    /// As [`Model::hidden_states`].
    ///
    /// # Errors
    /// As the model's own.
    pub fn hidden_states<'a>(&self, inputs: impl Into<Inputs<'a>>) -> Result<Tensor> {
        self.hidden_states_with(inputs.into(), &mut Tape::off())
    }

    /// As [`Model::logits`].
    ///
    /// # Errors
    /// As the model's own.
    pub fn logits<'a>(&self, inputs: impl Into<Inputs<'a>>) -> Result<Tensor> {
        self.logits_with(inputs.into(), &mut Tape::off())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tch::nn::VarStore;
    use tch::Device;

    use super::*;
    use crate::models::nn::Weights;

    /// The names of the variables that a new model makes, in order.
    fn made<M: Model>(config: Value) -> Vec<String> {
        let vs = VarStore::new(Device::Cpu);
        let weights = Weights::new(&vs.root());
        M::build(&weights, &M::Config::from_value(&config).unwrap()).unwrap();
        weights.handed_out().1
    }

    /// The figures of the quickstart and of the benchmarks are those of a seed, and so of this order.
    #[test]
    fn a_seed_gives_the_weights_of_former_versions_since_variables_are_made_in_the_same_order() {
        let vit = made::<ViTForImageClassification>(json!({
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
            "image_size": 4, "patch_size": 2,
        }));
        let random = |names: &[String]| -> Vec<String> {
            let is_random = |name: &&String| name.ends_with("weight") && !name.contains("norm");
            names.iter().filter(is_random).cloned().collect()
        };
        assert_eq!(vit[..2], ["vit.embeddings.cls_token", "vit.embeddings.position_embeddings"]);
        assert_eq!(
            random(&vit),
            [
                "vit.embeddings.patch_embeddings.projection.weight",
                "vit.layers.0.attention.q_proj.weight",
                "vit.layers.0.attention.k_proj.weight",
                "vit.layers.0.attention.v_proj.weight",
                "vit.layers.0.attention.o_proj.weight",
                "vit.layers.0.mlp.fc1.weight",
                "vit.layers.0.mlp.fc2.weight",
                "classifier.weight",
            ]
        );
        let llama = made::<Decoder>(json!({
            "model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2,
        }));
        assert_eq!(
            random(&llama),
            [
                "model.embed_tokens.weight",
                "lm_head.weight",
                "model.layers.0.self_attn.q_proj.weight",
                "model.layers.0.self_attn.k_proj.weight",
                "model.layers.0.self_attn.v_proj.weight",
                "model.layers.0.self_attn.o_proj.weight",
                "model.layers.0.mlp.gate_proj.weight",
                "model.layers.0.mlp.up_proj.weight",
                "model.layers.0.mlp.down_proj.weight",
            ]
        );
    }
}
