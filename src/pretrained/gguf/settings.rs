//! A configuration in the making.

use serde_json::{json, Value};

/// The configuration, and the sizes in it.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) value: Value,
    pub(super) width: i64,
    pub(super) layers: i64,
    pub(super) heads: i64,
    pub(super) kv_heads: i64,
    pub(super) head_dim: i64,
    pub(super) positions: i64,
    /// True if tensors hold the factors of LongRoPE.
    pub(super) has_long_rope: bool,
}

impl Config {
    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.value[key] = value.into();
    }

    /// As a model of another type.
    pub(super) fn become_a(&mut self, model_type: &str, class: &str) {
        self.set("model_type", model_type);
        self.set("architectures", json!([class]));
    }
}
