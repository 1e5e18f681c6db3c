//! A new head depends on the seed, and on nothing else.

use std::path::Path;

use super::random::alone;
use crate::nets::{snapshot, Bits};
use ln_tuning::models::{
    Dinov2, Dinov2Config, Encoder, EncoderConfig, Head, Load, Model, ModelConfig, ViTConfig,
    ViTForImageClassification,
};
use ln_tuning::pretrained;
use serde_json::{json, Value};
use tch::{nn::VarStore, Device};

const LABELS: [&str; 3] = ["bad", "good", "neither"];

/// Opens the model twice with one seed and once with another.
fn check(open: impl Fn() -> VarStore) {
    let opened = |seed: i64| {
        tch::manual_seed(seed);
        snapshot(&open())
    };
    let (first, again, other) = (opened(7), opened(7), opened(8));
    assert!(first.keys().any(|name| name.starts_with("classifier")), "{:?}", first.keys());
    assert_eq!(first, again);
    let differs = |(name, bits): (&String, &Bits)| other[name] != *bits;
    let changed = first.iter().filter(|pair| differs(*pair)).map(|(name, _)| name);
    let changed: Vec<&String> = changed.collect();
    let new = |name: &&String| name.contains("classifier") || name.contains("pooler");
    assert!(!changed.is_empty() && changed.iter().all(new), "{changed:?}");
}

fn save(vs: &VarStore, dir: &Path, config: &str) {
    pretrained::save(vs, dir, config).unwrap();
}

#[test]
fn text_classifiers_on_every_family() {
    let _alone = alone();
    let bert = json!({
        "vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 12, "pad_token_id": 1,
    });
    let distilbert = json!({
        "vocab_size": 20, "dim": 8, "hidden_dim": 16, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 12,
    });
    for (model_type, class, fields) in [
        ("bert", "BertModel", &bert),
        ("roberta", "RobertaModel", &bert),
        ("xlm-roberta", "XLMRobertaModel", &bert),
        ("distilbert", "DistilBertModel", &distilbert),
    ] {
        let mut config: Value = fields.clone();
        config["model_type"] = json!(model_type);
        config["architectures"] = json!([class]);
        let config = EncoderConfig::from_value(&config).unwrap();
        let (dir, vs) = (tempfile::tempdir().unwrap(), VarStore::new(Device::Cpu));
        Encoder::new(&vs.root(), &config).unwrap();
        save(&vs, dir.path(), &config.to_json());
        for head in [Head::SequenceClassification, Head::TokenClassification] {
            let dir = dir.path();
            let device = Device::Cpu;
            check(|| {
                let load = Load::on(device).head(head).labels(LABELS);
                Encoder::from_pretrained_with(dir, &load).unwrap().0
            });
        }
    }
}

#[test]
fn image_classifiers() {
    let _alone = alone();
    let (dir, vs) = (tempfile::tempdir().unwrap(), VarStore::new(Device::Cpu));
    let config = json!({"hidden_size": 24, "num_hidden_layers": 1, "image_size": 16});
    let config = ViTConfig::from_value(&config).unwrap();
    ViTForImageClassification::new(&vs.root(), &config).unwrap();
    save(&vs, dir.path(), &config.to_json());
    check(|| {
        let load = Load::on(Device::Cpu).labels(LABELS);
        ViTForImageClassification::from_pretrained_with(dir.path(), &load).unwrap().0
    });

    let (dir, vs) = (tempfile::tempdir().unwrap(), VarStore::new(Device::Cpu));
    let config = json!({
        "model_type": "dinov2", "hidden_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 16,
        "patch_size": 4, "architectures": ["Dinov2Model"],
    });
    Dinov2::new(&vs.root(), &Dinov2Config::from_value(&config).unwrap()).unwrap();
    save(&vs, dir.path(), &config.to_string());
    let load = Load::on(Device::Cpu).labels(LABELS);
    check(|| Dinov2::from_pretrained_with(dir.path(), &load).unwrap().0);
}
