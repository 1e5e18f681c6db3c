//! Images, ids and settings of models that see that do not fit.

use ln_tuning::models::{ImageTextToText, ImageTextToTextConfig, Inputs, Model, ModelConfig};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::ErrorKind;
use serde_json::{json, Value};
use tch::{Device, Kind, Tensor};

use super::{made, open};

#[test]
fn inputs_and_configurations_that_do_not_fit_are_refused() {
    let (_, gemma, reference) = open("gemma3");
    let (_, idefics, _) = open("idefics3");
    let four = &reference["right.images"];
    let ids = &reference["right.ids"];
    let small = four.narrow(2, 0, 10);
    let pixels = Tensor::ones([4, 12, 12], (Kind::Int64, Device::Cpu));
    let narrow = pixels.narrow(2, 0, 6);
    let three = four.narrow(0, 0, 3);
    let features = Tensor::zeros([4, 35, 24], (Kind::Float, Device::Cpu));
    let inputs = Inputs::new(ids);
    for (model, inputs, kind, words) in [
        (
            &gemma,
            inputs.pixel_values(&three),
            ErrorKind::ShapeMismatch,
            "36 image tokens (60), and 3 images take 27",
        ),
        (&gemma, inputs, ErrorKind::ShapeMismatch, "36 image tokens (60), and 0 images take 0"),
        (&gemma, inputs.pixel_values(&small), ErrorKind::ShapeMismatch, "12, 12"),
        (&idefics, inputs.pixel_values(&small), ErrorKind::ShapeMismatch, "12, 12"),
        (
            &gemma,
            inputs.pixel_values(four).pixel_attention_mask(&pixels),
            ErrorKind::InvalidArgument,
            "gemma3 has no use for pixel_attention_mask",
        ),
        (
            &idefics,
            inputs.pixel_values(four).pixel_attention_mask(&narrow),
            ErrorKind::ShapeMismatch,
            "[4, 12, 6], expected that of the images, [4, 12, 12]",
        ),
        (&gemma, inputs.image_features(&features), ErrorKind::ShapeMismatch, "[images, 36, 24]"),
        (
            &gemma,
            inputs.pixel_values(four).image_features(&features),
            ErrorKind::InvalidArgument,
            "both given",
        ),
        (
            &gemma,
            inputs.pixel_values(four).token_type_ids(ids),
            ErrorKind::InvalidArgument,
            "token_type_ids",
        ),
    ] {
        let error = model.logits(inputs).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    let (_, qwen, of_qwen) = open("qwen3_vl");
    let (ids, patches, grids) =
        (&of_qwen["one.ids"], &of_qwen["one.images"], &of_qwen["one.grids"]);
    let grid =
        |frames: i64, rows: i64, columns: i64| Tensor::from_slice2(&[[frames, rows, columns]]);
    let inputs = Inputs::new(ids).pixel_values(patches);
    let largest = (1 << 20) - 2;
    let huge = grid(largest, largest, largest).repeat([40, 1]);
    for (inputs, kind, words) in [
        (inputs, ErrorKind::InvalidArgument, "image_grid_thw are missing"),
        (
            inputs.image_grid_thw(&grid(1, 4, 6)),
            ErrorKind::ShapeMismatch,
            "[16, 24], expected [24, 24]",
        ),
        (inputs.image_grid_thw(&grid(1, 16, 1)), ErrorKind::InvalidArgument, "multiples of 2"),
        (inputs.image_grid_thw(&grid(0, 4, 4)), ErrorKind::InvalidArgument, "[0, 4, 4]"),
        (inputs.image_grid_thw(&huge), ErrorKind::ShapeMismatch, "a row for each patch"),
        (
            inputs.image_grid_thw(&grids.get(0)),
            ErrorKind::ShapeMismatch,
            "[3], expected [images, 3]",
        ),
        (
            Inputs::new(&of_qwen["two.ids"]).pixel_values(patches).image_grid_thw(grids),
            ErrorKind::ShapeMismatch,
            "the ids hold 6 image tokens (60), and the images of image_grid_thw take 4",
        ),
        (
            Inputs::new(ids).image_grid_thw(grids),
            ErrorKind::InvalidArgument,
            "image_grid_thw are given without the images' pixel_values",
        ),
        (Inputs::new(ids), ErrorKind::ShapeMismatch, "4 image tokens (60)"),
    ] {
        let error = qwen.logits(inputs).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    for (case, key, value, kind) in [
        (
            "qwen3_vl",
            "/vision_config/deepstack_visual_indexes",
            json!([2, 0]),
            ErrorKind::InvalidConfig,
        ),
        (
            "qwen3_vl",
            "/vision_config/deepstack_visual_indexes",
            json!([4]),
            ErrorKind::InvalidConfig,
        ),
        ("qwen3_vl", "/vision_config/num_position_embeddings", json!(10), ErrorKind::InvalidConfig),
        ("qwen3_vl", "/vision_config/out_hidden_size", json!(31), ErrorKind::InvalidConfig),
        ("qwen3_vl", "/vision_config/num_heads", json!(12), ErrorKind::InvalidConfig),
        ("gemma3", "/mm_tokens_per_image", json!(49), ErrorKind::InvalidConfig),
        ("gemma3", "/mm_tokens_per_image", json!(0), ErrorKind::InvalidConfig),
        ("gemma3", "/image_token_index", json!("<image>"), ErrorKind::InvalidConfig),
        (
            "gemma3",
            "/vision_config/model_type",
            json!("siglip2_vision_model"),
            ErrorKind::Unsupported,
        ),
        ("gemma3", "/text_config/model_type", json!("mamba"), ErrorKind::Unsupported),
        ("gemma3", "/text_config", json!(3), ErrorKind::InvalidConfig),
        ("idefics3", "/scale_factor", json!(4), ErrorKind::InvalidConfig),
        ("idefics3", "/scale_factor", json!(0), ErrorKind::InvalidConfig),
        ("idefics3", "/scale_factor", json!(3), ErrorKind::ShapeMismatch),
    ] {
        let text = std::fs::read_to_string(made().join(case).join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        *config.pointer_mut(key).unwrap() = value.clone();
        let read = ImageTextToTextConfig::from_value(&config).and_then(|config| {
            let files = ModelFiles::open(made().join(case))?;
            let vs = files.var_store(Device::Cpu, None, |_| true)?;
            ImageTextToText::new(&vs.root(), &config).map(drop)
        });
        let error = read.unwrap_err();
        assert_eq!(error.kind(), kind, "{case} {key} {value}: {error}");
    }
}
