//! Images, ids and settings of a LLaVA that do not fit.

use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{GenerateOptions, Head, ImageTextToTextConfig, Inputs, Model, ModelConfig};
use ln_tuning::ErrorKind;
use serde_json::json;

use super::{open, read, refused};

#[test]
fn images_and_image_tokens_that_do_not_fit_are_refused_with_both_numbers() {
    let reference = read("llama/reference.st");
    let (_, model) = open("llama");
    let (ids, images) = (&reference["one.ids"], &reference["right.images"]);
    let shape = ErrorKind::ShapeMismatch;
    let two = images.narrow(0, 0, 2);
    let inputs = Inputs::new(ids).pixel_values(&two);
    refused(model.logits(inputs), shape, &["9 image tokens (60)", "2 images take 18"]);
    refused(model.logits(ids), shape, &["9 image tokens (60)", "0 images take 0"]);
    let labels = ids.copy();
    refused(model.loss(inputs, &labels, &LinearCrossEntropy::default()), shape, &["9", "18"]);
    refused(model.generate(inputs, &GenerateOptions::default()), shape, &["9", "18"]);
    let features = model.image_features(&images.narrow(0, 0, 1)).unwrap();
    let inputs = Inputs::new(ids).image_features(&features);
    let both = inputs.pixel_values(&two);
    refused(model.logits(both), ErrorKind::InvalidArgument, &["pixel_values", "image_features"]);
    let narrow = features.narrow(1, 0, 8);
    refused(
        model.logits(inputs.image_features(&narrow)),
        shape,
        &["[images, 9, 24]", "[1, 8, 24]"],
    );
    let small = images.narrow(0, 0, 1).narrow(3, 0, 8);
    refused(model.logits(Inputs::new(ids).pixel_values(&small)), shape, &["12, 12", "12, 8"]);
    refused(model.logits(images), ErrorKind::InvalidArgument, &["input_ids"]);
    let types = Inputs::new(ids).token_type_ids(ids);
    refused(
        model.logits(types),
        ErrorKind::InvalidArgument,
        &["llava has no use for token_type_ids"],
    );
}

#[test]
fn settings_that_are_not_implemented_or_do_not_fit_are_refused_by_name() {
    let (unsupported, invalid) = (ErrorKind::Unsupported, ErrorKind::InvalidConfig);
    for (changes, kind, word) in [
        (json!({"vision_config": {"model_type": "pixtral"}}), unsupported, "'pixtral'"),
        (json!({"text_config": {"model_type": "mamba"}}), unsupported, "'mamba'"),
        (json!({"projector_hidden_act": "mish"}), unsupported, "'projector_hidden_act' is 'mish'"),
        (json!({"vision_feature_select_strategy": "cls"}), invalid, "'cls'"),
        (json!({"vision_feature_layer": 25}), invalid, "-25 to 24"),
        (json!({"vision_feature_layer": [-2, -26]}), invalid, "[-2,-26]"),
        (json!({"vision_feature_layer": []}), invalid, "vision_feature_layer"),
        (json!({"vision_feature_layer": [1, "last"]}), invalid, "last"),
        (json!({"vision_feature_layer": 1.5}), invalid, "1.5"),
        (json!({"vision_config": 3}), invalid, "vision_config"),
        (json!({"text_config": [1]}), invalid, "text_config"),
        (json!({"image_token_index": "<image>"}), invalid, "image_token_index"),
        (json!({"multimodal_projector_bias": 1}), invalid, "multimodal_projector_bias"),
        (json!({"quantization_config": {"bits": 4}}), unsupported, "quantization_config"),
        (
            json!({"architectures": ["LlavaForSequenceClassification"], "text_config": {}}),
            unsupported,
            "LlavaForConditionalGeneration",
        ),
    ] {
        let mut config = changes.clone();
        config["model_type"] = json!("llava");
        refused(ImageTextToTextConfig::from_value(&config), kind, &[word]);
    }
    let config = ImageTextToTextConfig::from_value(&json!({"model_type": "llava"})).unwrap();
    refused(config.clone().with_labels(["a", "b"]), ErrorKind::InvalidArgument, &["classifier"]);
    assert_eq!(config.with_head(Head::None).unwrap().text().head(), Head::None);
}
