//! The defaults of transformers' configurations: a part of a larger model does not repeat them in its files.

use serde_json::Value;

use super::config::DecoderConfig;
use crate::error::Result;
use crate::models::config::ModelConfig;

/// Keys, and their values where they are missing.
type Defaults = &'static [(&'static str, i64)];

/// Keys of one meaning.
const SAME: [[&str; 3]; 4] = [
    ["hidden_size", "n_embd", "n_embed"],
    ["num_attention_heads", "n_head", ""],
    ["num_hidden_layers", "n_layer", ""],
    ["max_position_embeddings", "n_positions", ""],
];

impl DecoderConfig {
    /// Reads the configuration of a language model that is a part of a larger one: what is missing there is
    /// transformers' default.
    pub(in crate::models) fn of_part(config: &Value) -> Result<Self> {
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let defaults = DEFAULTS.iter().find(|(known, _)| *known == model_type);
        let mut filled = config.clone();
        for (key, value) in defaults.map_or(&[][..], |(_, defaults)| defaults) {
            let same = SAME.iter().find(|keys| keys.contains(key));
            let same = same.map_or(std::slice::from_ref(key), |keys| &keys[..]);
            if same.iter().all(|key| config.get(*key).is_none()) {
                filled[*key] = (*value).into();
            }
        }
        Self::from_value(&filled)
    }
}

/// Keys that are not here have their defaults in the family's row.
const DEFAULTS: &[(&str, Defaults)] = &[
    (
        "bloom",
        &[
            ("vocab_size", 250_880),
            ("hidden_size", 64),
            ("n_layer", 2),
            ("n_head", 8),
            ("eos_token_id", 2),
        ],
    ),
    (
        "cohere",
        &[
            ("vocab_size", 256_000),
            ("hidden_size", 8192),
            ("intermediate_size", 22_528),
            ("num_hidden_layers", 40),
            ("num_attention_heads", 64),
            ("eos_token_id", 255_001),
            ("pad_token_id", 0),
        ],
    ),
    (
        "falcon",
        &[
            ("vocab_size", 65_024),
            ("hidden_size", 4544),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 71),
            ("eos_token_id", 11),
        ],
    ),
    (
        "gemma",
        &[
            ("vocab_size", 256_000),
            ("hidden_size", 3072),
            ("intermediate_size", 24_576),
            ("num_hidden_layers", 28),
            ("num_attention_heads", 16),
            ("num_key_value_heads", 16),
            ("head_dim", 256),
            ("eos_token_id", 1),
            ("pad_token_id", 0),
        ],
    ),
    (
        "gemma2",
        &[
            ("vocab_size", 256_000),
            ("hidden_size", 2304),
            ("intermediate_size", 9216),
            ("num_hidden_layers", 26),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
            ("eos_token_id", 1),
            ("pad_token_id", 0),
        ],
    ),
    (
        "gemma3_text",
        &[
            ("vocab_size", 262_208),
            ("hidden_size", 2304),
            ("intermediate_size", 9216),
            ("num_hidden_layers", 26),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
            ("eos_token_id", 1),
            ("pad_token_id", 0),
        ],
    ),
    (
        "gpt2",
        &[
            ("vocab_size", 50_257),
            ("n_embd", 768),
            ("n_layer", 12),
            ("n_head", 12),
            ("n_positions", 1024),
            ("eos_token_id", 50_256),
        ],
    ),
    (
        "gpt_neox",
        &[
            ("vocab_size", 50_432),
            ("hidden_size", 6144),
            ("intermediate_size", 24_576),
            ("num_hidden_layers", 44),
            ("num_attention_heads", 64),
            ("eos_token_id", 2),
        ],
    ),
    (
        "gptj",
        &[
            ("vocab_size", 50_400),
            ("n_embd", 4096),
            ("n_layer", 28),
            ("n_head", 16),
            ("n_positions", 2048),
            ("rotary_dim", 64),
            ("eos_token_id", 50_256),
        ],
    ),
    (
        "granite",
        &[
            ("vocab_size", 32_000),
            ("hidden_size", 4096),
            ("intermediate_size", 11_008),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("eos_token_id", 2),
        ],
    ),
    (
        "llama",
        &[
            ("vocab_size", 32_000),
            ("hidden_size", 4096),
            ("intermediate_size", 11_008),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("eos_token_id", 2),
        ],
    ),
    (
        "mistral",
        &[
            ("vocab_size", 32_000),
            ("hidden_size", 4096),
            ("intermediate_size", 14_336),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("num_key_value_heads", 8),
            ("eos_token_id", 2),
        ],
    ),
    (
        "olmo",
        &[
            ("vocab_size", 50_304),
            ("hidden_size", 4096),
            ("intermediate_size", 11_008),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("eos_token_id", 50_279),
            ("pad_token_id", 1),
        ],
    ),
    (
        "olmo2",
        &[
            ("vocab_size", 50_304),
            ("hidden_size", 4096),
            ("intermediate_size", 11_008),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("eos_token_id", 50_279),
            ("pad_token_id", 1),
        ],
    ),
    (
        "opt",
        &[
            ("vocab_size", 50_272),
            ("hidden_size", 768),
            ("ffn_dim", 3072),
            ("num_hidden_layers", 12),
            ("num_attention_heads", 12),
            ("max_position_embeddings", 2048),
            ("eos_token_id", 2),
            ("pad_token_id", 1),
        ],
    ),
    (
        "phi",
        &[
            ("vocab_size", 51_200),
            ("hidden_size", 2048),
            ("intermediate_size", 8192),
            ("num_hidden_layers", 24),
            ("num_attention_heads", 32),
            ("eos_token_id", 2),
        ],
    ),
    (
        "phi3",
        &[
            ("vocab_size", 32_064),
            ("hidden_size", 3072),
            ("intermediate_size", 8192),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("original_max_position_embeddings", 4096),
            ("eos_token_id", 32_000),
            ("pad_token_id", 32_000),
        ],
    ),
    (
        "qwen2",
        &[
            ("vocab_size", 151_936),
            ("hidden_size", 4096),
            ("intermediate_size", 22_016),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("num_key_value_heads", 32),
        ],
    ),
    (
        "qwen3",
        &[
            ("vocab_size", 151_936),
            ("hidden_size", 4096),
            ("intermediate_size", 22_016),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("num_key_value_heads", 32),
            ("head_dim", 128),
        ],
    ),
    (
        "smollm3",
        &[
            ("vocab_size", 128_256),
            ("hidden_size", 2048),
            ("intermediate_size", 11_008),
            ("num_hidden_layers", 36),
            ("num_attention_heads", 16),
            ("num_key_value_heads", 4),
            ("eos_token_id", 128_001),
            ("pad_token_id", 128_004),
        ],
    ),
    (
        "stablelm",
        &[
            ("vocab_size", 50_304),
            ("hidden_size", 2560),
            ("intermediate_size", 6912),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("num_key_value_heads", 32),
            ("eos_token_id", 0),
        ],
    ),
    (
        "starcoder2",
        &[
            ("vocab_size", 49_152),
            ("hidden_size", 3072),
            ("intermediate_size", 12_288),
            ("num_hidden_layers", 30),
            ("num_attention_heads", 24),
            ("num_key_value_heads", 2),
            ("eos_token_id", 50_256),
        ],
    ),
];
