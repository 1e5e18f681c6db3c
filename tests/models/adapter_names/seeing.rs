//! Images have the adapter of the row that they belong to.

use super::{whole, Case, NAMES};
use crate::nets::{bits, noise};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{GenerateOptions, Head, ImageTextToText, Inputs, Model};
use serde_json::{json, Value};
use tch::{no_grad, Kind, Tensor};

/// The token of images.
const IMAGE: i64 = 38;

fn text(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 40, "hidden_size": 32, "intermediate_size": 24, "head_dim": 16,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "query_pre_attn_scalar": 16, "sliding_window": 4, "sliding_window_pattern": 2, "pad_token_id": 0,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": true, "mrope_section": [4, 2, 2]},
    })
}

/// A model of this type whose images have `side` patches a side.
pub fn config(model_type: &str, side: i64) -> Value {
    let mut text = text(match model_type {
        "gemma3" => "gemma3_text",
        "qwen3_vl" => "qwen3_vl_text",
        _ => "llama",
    });
    if model_type != "qwen3_vl" {
        text["rope_scaling"] = Value::Null;
    }
    let tower = match model_type {
        "qwen3_vl" => json!({
            "depth": 2, "hidden_size": 12, "num_heads": 3, "intermediate_size": 16, "patch_size": 2,
            "temporal_patch_size": 2, "spatial_merge_size": 2, "num_position_embeddings": 9,
            "deepstack_visual_indexes": [0], "out_hidden_size": 32,
        }),
        _ => json!({
            "model_type": if model_type == "llava_next" { "clip_vision_model" } else { "siglip_vision_model" },
            "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 3,
            "image_size": 2 * side, "patch_size": 2, "vision_use_head": false,
        }),
    };
    let mut whole = json!({
        "model_type": model_type, "text_config": text, "vision_config": tower, "image_token_id": IMAGE,
        "image_token_index": IMAGE,
    });
    let more = match model_type {
        "gemma3" => json!({"mm_tokens_per_image": 4}),
        "idefics3" | "smolvlm" => json!({"scale_factor": 2}),
        "llava" => json!({"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}),
        "llava_next" => {
            json!({"image_grid_pinpoints": [[2 * side, 4 * side], [4 * side, 4 * side]]})
        }
        _ => json!({}),
    };
    whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    whole
}

/// Rows with one, two, no and one image, of so many tokens each, padded on the left.
pub fn ids(tokens: &[i64]) -> [Tensor; 2] {
    let mut tokens = tokens.iter();
    let rows = [1, 2, 0, 1].iter().enumerate().map(|(row, images)| {
        let mut ids: Vec<i64> = vec![1 + row as i64, 5];
        for _ in 0..*images {
            ids.extend(vec![IMAGE; *tokens.next().unwrap() as usize]);
            ids.push(7 + row as i64);
        }
        ids
    });
    let rows: Vec<Vec<i64>> = rows.collect();
    let length = rows.iter().map(Vec::len).max().unwrap();
    let padded = |fill: &dyn Fn(i64) -> i64| {
        let rows = rows.iter().map(|row| {
            let mut padded = vec![0; length - row.len()];
            padded.extend(row.iter().map(|id| fill(*id)));
            Tensor::from_slice(&padded)
        });
        Tensor::stack(&rows.collect::<Vec<_>>(), 0)
    };
    [padded(&|id| id), padded(&|_| 1)]
}

#[test]
fn images_have_the_adapter_of_their_row_in_tower_connector_and_text() {
    for (model_type, saved) in [
        ("gemma3", &["embed_tokens", "multi_modal_projector"][..]),
        ("idefics3", &["embed_tokens", "proj"]),
        ("smolvlm", &["proj"]),
        ("llava", &["linear_1", "linear_2"]),
        ("llava_next", &["embed_tokens", "linear_1", "linear_2"]),
        ("qwen3_vl", &["embed_tokens", "linear_fc1"]),
        ("qwen3_vl", &["patch_embed", "pos_embed"]),
        ("gemma3", &["embeddings"]),
        ("idefics3", &["embeddings"]),
        ("llava_next", &["embeddings"]),
    ] {
        // Modules that are no norms compute fewer rows at once.
        rows_are_those_of_set_adapter(model_type, saved, 1e-5);
    }
    for model_type in ["gemma3", "idefics3", "smolvlm", "llava", "llava_next", "qwen3_vl"] {
        rows_are_those_of_set_adapter(model_type, &[], 0.);
    }
}

fn rows_are_those_of_set_adapter(model_type: &str, saved: &[&str], tolerance: f64) {
    let mut case: Case<ImageTextToText> =
        Case::new(&config(model_type, 4), Head::LanguageModel, Kind::Float, saved);
    let images_of_tiles = [[10_i64, 20], [16, 16], [9, 30], [20, 22]];
    let (tokens, images) = match model_type {
        "llava" => ([16; 4], noise(&[4, 3, 8, 8], 5)),
        "llava_next" => (
            images_of_tiles.map(|[high, wide]| case.model.image_tokens(high, wide).unwrap()),
            noise(&[3 + 5 + 3 + 5, 3, 8, 8], 6),
        ),
        "qwen3_vl" => ([4, 3, 6, 8], noise(&[16 + 12 + 24 + 32, 3 * 2 * 2 * 2], 7)),
        _ => ([4; 4], noise(&[4, 3, 8, 8], 5)),
    };
    let [ids, mask] = ids(&tokens);
    let sizes = Tensor::from_slice2(&images_of_tiles);
    let grids = Tensor::from_slice2(&[[1_i64, 4, 4], [1, 2, 6], [2, 6, 2], [1, 4, 8]]);
    let inputs = |mixed| {
        let inputs = Inputs::new(&ids)
            .attention_mask(&mask)
            .image_sizes((model_type == "llava_next").then_some(&sizes))
            .image_grid_thw((model_type == "qwen3_vl").then_some(&grids));
        super::named(inputs, mixed)
    };
    case.check(&NAMES, tolerance, |model, mixed| model.logits(inputs(mixed).pixel_values(&images)));
    // Features that were kept have been through the tower.
    let features = case.under("a", &|model| {
        let grids = (model_type == "qwen3_vl").then_some(&grids);
        model.image_features(Inputs::images(&images).image_grid_thw(grids))
    });
    case.check(&NAMES, tolerance, |model, mixed| {
        model.logits(inputs(mixed).image_features(&features))
    });
    if ["gemma3", "idefics3", "smolvlm", "llava"].contains(&model_type) {
        case.check(&NAMES, tolerance, |model, mixed| {
            model.image_features(super::named(Inputs::images(&images), mixed))
        });
    } else if model_type == "qwen3_vl" {
        let of = |case: &Case<ImageTextToText>, mixed| {
            let inputs = Inputs::images(&images).image_grid_thw(&grids);
            no_grad(|| case.model.image_features(super::named(inputs, mixed)).unwrap())
        };
        let found = of(&case, true);
        let mut start = 0;
        for (name, count) in NAMES.iter().zip([16, 12, 24, 32]) {
            let expected = case.under(name, &|model| {
                model.image_features(Inputs::images(&images).image_grid_thw(&grids))
            });
            let part = |x: &Tensor| x.narrow(0, start, count);
            let off = (part(&found) - part(&expected)).abs().max().double_value(&[]);
            assert!(off <= tolerance, "{name}: {off} off");
            start += count;
        }
    }
    let options = GenerateOptions::default().max_new_tokens(3).stop_tokens([]);
    let expected = case
        .row_by_row(&NAMES, &|model| model.generate(inputs(false).pixel_values(&images), &options));
    let found = case.model.generate(inputs(true).pixel_values(&images), &options).unwrap();
    assert!(bits(&found) == bits(&expected), "{model_type}: {found} {expected}");
    if saved.is_empty() {
        // All of the model, with the line that ends a row of LLaVA-NeXT's tiles.
        case = case.with_whole();
        let inputs = inputs(false).pixel_values(&images);
        case.check(&whole::NAMES, 1e-5, |model, mixed| {
            model.logits(if mixed { inputs.adapter_names(&whole::NAMES) } else { inputs })
        });
    }
    let loss = LinearCrossEntropy::default();
    let both = no_grad(|| case.model.loss(inputs(true).pixel_values(&images), &ids, &loss));
    assert!(both.unwrap().double_value(&[]).is_finite());
}
