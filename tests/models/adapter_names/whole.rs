//! Adapters that have all of a model: no part of it is left that rows cannot have of their own.

use super::{bart, decoder, families, ids, image_model, masks, shift, t5, towers, Case};
use crate::nets::noise;
use ln_tuning::models::{
    Clip, Decoder, Dinov2, Encoder, Head, Inputs, Model, Seq2Seq, Siglip, TowerClassifier,
    ViTForImageClassification,
};
use ln_tuning::{LnTuningConfig, Result};
use serde_json::{json, Value};
use tch::{Kind, Tensor};

/// Products of fewer rows add in another order, in all layers here.
const OFF: f64 = 1e-5;

/// Of the rows of a batch; `whole` is an adapter of all modules.
pub const NAMES: [&str; 4] = ["whole", "b", "__base__", "whole"];

impl<M: Model> Case<M> {
    /// Adds `whole`.
    pub fn with_whole(mut self) -> Self {
        let top = |name: &String| Some(name.split_once('.')?.0.to_owned());
        let mut modules: Vec<String> = self.vs.variables().keys().filter_map(top).collect();
        modules.sort();
        modules.dedup();
        let config = LnTuningConfig::default().target_modules(modules);
        self.tuned.add_adapter("whole", config).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        shift(&mut self.tuned, "whole", 9);
        self
    }

    fn check_whole<'a>(
        &mut self,
        run: impl Fn(&M, Inputs<'a>) -> Result<Tensor>,
        inputs: Inputs<'a>,
    ) {
        self.check(&NAMES, OFF, |model, mixed| {
            run(model, if mixed { inputs.adapter_names(&NAMES) } else { inputs })
        });
    }
}

fn whole<M: Model>(config: &Value, head: Head) -> Case<M> {
    Case::new(config, head, Kind::Float, &[]).with_whole()
}

#[test]
fn rows_of_texts_have_all_of_the_model_of_their_own() {
    let (ids, masks) = (ids(), masks());
    for family in families() {
        let mut case: Case<Decoder> = whole(&decoder(family), Head::LanguageModel);
        case.check_whole(
            |model, inputs| model.logits(inputs),
            Inputs::new(&ids).attention_mask(&masks[0]),
        );
    }
    for model_type in ["bert", "roberta", "distilbert"] {
        let config = json!({
            "model_type": model_type, "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "dim": 16,
            "num_attention_heads": 4, "intermediate_size": 24, "hidden_dim": 24, "n_layers": 2, "n_heads": 4,
            "max_position_embeddings": 16, "pad_token_id": 0,
        });
        for head in [Head::MaskedLm, Head::SequenceClassification] {
            let mut case: Case<Encoder> = whole(&config, head);
            let inputs = Inputs::new(&ids).attention_mask(&masks[1]);
            case.check_whole(|model, inputs| model.logits(inputs), inputs);
        }
    }
    let decoder_ids = ids.narrow(1, 0, 5).contiguous();
    for config in [t5(), bart()] {
        let mut case: Case<Seq2Seq> = whole(&config, Head::LanguageModel);
        let inputs = Inputs::new(&ids).attention_mask(&masks[1]).decoder_ids(&decoder_ids);
        case.check_whole(|model, inputs| model.logits(inputs), inputs);
    }
}

#[test]
fn images_have_all_of_the_model_of_their_own() {
    let (images, ids) = (noise(&[4, 3, 8, 8], 50), ids());
    let class = Head::ImageClassification;
    let pixels = Inputs::images(&images);
    whole::<ViTForImageClassification>(&image_model("vit"), class)
        .check_whole(|model, inputs| model.logits(inputs), pixels);
    whole::<Dinov2>(&image_model("dinov2"), class)
        .check_whole(|model, inputs| model.logits(inputs), pixels);
    for model_type in ["clip", "siglip"] {
        let config = towers(model_type);
        whole::<TowerClassifier>(&config, class)
            .check_whole(|model, inputs| model.logits(inputs), pixels);
        if model_type == "clip" {
            let mut case = whole::<Clip>(&config, Head::None);
            case.check_whole(|model, inputs| model.image_features(inputs), pixels);
            case.check_whole(|model, inputs| model.text_features(inputs), Inputs::new(&ids));
        } else {
            let mut case = whole::<Siglip>(&config, Head::None);
            case.check_whole(|model, inputs| model.image_features(inputs), pixels);
            case.check_whole(|model, inputs| model.text_features(inputs), Inputs::new(&ids));
        }
    }
}
