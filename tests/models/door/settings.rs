//! Small settings of every model type.

use serde_json::{json, Value};

pub fn decoders() -> Vec<Value> {
    let llama = json!({
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 20,
    });
    let gpt2 = json!({"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 20, "rotary_dim": 4});
    let others = json!({
        "hidden_size": 16, "n_layer": 2, "n_head": 2, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24,
        "word_embed_proj_dim": 16, "max_position_embeddings": 20, "intermediate_size": 24,
    });
    let of = |fields: &Value, model_type: &str, class: &str| {
        let mut fields = fields.clone();
        fields["model_type"] = json!(model_type);
        fields["architectures"] = json!([class]);
        fields["vocab_size"] = json!(40);
        fields["pad_token_id"] = json!(1);
        fields
    };
    vec![
        of(&others, "bloom", "BloomForCausalLM"),
        of(&llama, "cohere", "CohereForCausalLM"),
        of(&others, "falcon", "FalconForCausalLM"),
        of(&llama, "gemma", "GemmaForCausalLM"),
        of(&llama, "gemma2", "Gemma2ForCausalLM"),
        of(&llama, "gemma3_text", "Gemma3ForCausalLM"),
        of(&gpt2, "gpt2", "GPT2LMHeadModel"),
        of(&others, "gpt_neox", "GPTNeoXForCausalLM"),
        of(&gpt2, "gptj", "GPTJForCausalLM"),
        of(&llama, "granite", "GraniteForCausalLM"),
        of(&llama, "llama", "LlamaForCausalLM"),
        of(&llama, "mistral", "MistralForCausalLM"),
        of(&llama, "olmo", "OlmoForCausalLM"),
        of(&llama, "olmo2", "Olmo2ForCausalLM"),
        of(&others, "opt", "OPTForCausalLM"),
        of(&llama, "phi", "PhiForCausalLM"),
        of(&llama, "phi3", "Phi3ForCausalLM"),
        of(&llama, "qwen2", "Qwen2ForCausalLM"),
        of(&llama, "qwen3", "Qwen3ForCausalLM"),
        of(&llama, "smollm3", "SmolLM3ForCausalLM"),
        of(&llama, "stablelm", "StableLmForCausalLM"),
        of(&llama, "starcoder2", "Starcoder2ForCausalLM"),
    ]
}

pub fn encoders() -> Vec<Value> {
    let of = |model_type: &str, class: &str| {
        json!({
            "model_type": model_type, "architectures": [class], "vocab_size": 40, "hidden_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 20,
            "pad_token_id": 1, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "id2label": {"0": "x"}, "label2id": {"x": 0},
        })
    };
    vec![
        of("bert", "BertForMaskedLM"),
        of("roberta", "RobertaForSequenceClassification"),
        of("xlm-roberta", "XLMRobertaForTokenClassification"),
        of("distilbert", "DistilBertModel"),
    ]
}

pub fn seq2seqs() -> Vec<Value> {
    let of = |model_type: &str, class: &str| {
        json!({
            "model_type": model_type, "architectures": [class], "vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24,
            "num_layers": 2, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "pad_token_id": 1,
            "max_position_embeddings": 20, "is_encoder_decoder": true, "tie_word_embeddings": true,
        })
    };
    vec![
        of("bart", "BartForConditionalGeneration"),
        of("t5", "T5ForConditionalGeneration"),
        of("mt5", "MT5ForConditionalGeneration"),
    ]
}

pub fn images(model_type: &str, class: &str) -> Value {
    json!({
        "model_type": model_type, "architectures": [class], "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8, "patch_size": 4, "vocab_size": 40,
        "max_position_embeddings": 12, "eos_token_id": 2, "id2label": {"0": "x"}, "label2id": {"x": 0},
    })
}

/// An image takes one token, the 2, which each row has once; in tiles, or of any size, it takes more, of which there are
/// none.
pub fn of_images_and_texts() -> Vec<Value> {
    let of = |model_type: &str, class: &str, text: &str, vision: &str| {
        let mut tower = images(vision, "");
        tower["patch_size"] = json!(8);
        let token =
            if ["llava_next", "qwen2_5_vl", "qwen3_vl"].contains(&model_type) { 39 } else { 2 };
        json!({
            "model_type": model_type, "architectures": [class], "image_token_id": token, "image_token_index": token,
            "mm_tokens_per_image": 1, "scale_factor": 1, "image_grid_pinpoints": [[8, 16]],
            "text_config": {
                "model_type": text, "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 20,
                "pad_token_id": 1,
            },
            "vision_config": tower,
        })
    };
    let mut qwen =
        of("qwen3_vl", "Qwen3VLForConditionalGeneration", "qwen3_vl_text", "qwen3_vl_vision");
    qwen["text_config"]["rope_parameters"] =
        json!({"rope_type": "default", "rope_theta": 1000., "mrope_section": [2, 1, 1]});
    let tower = json!({
        "depth": 2, "num_heads": 2, "num_position_embeddings": 4, "deepstack_visual_indexes": [0], "out_hidden_size": 16,
    });
    qwen["vision_config"].as_object_mut().unwrap().extend(tower.as_object().unwrap().clone());
    let mut windows = of(
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        "qwen2_5_vl_text",
        "qwen2_5_vl_vision",
    );
    windows["text_config"]["rope_parameters"] = qwen["text_config"]["rope_parameters"].clone();
    windows["vision_config"].as_object_mut().unwrap().extend(tower.as_object().unwrap().clone());
    let (clip, siglip, idefics3) = ("clip_vision_model", "siglip_vision_model", "idefics3_vision");
    vec![
        of("gemma3", "Gemma3ForConditionalGeneration", "gemma3_text", siglip),
        of("idefics3", "Idefics3ForConditionalGeneration", "llama", idefics3),
        of("llava", "LlavaForConditionalGeneration", "llama", clip),
        of("llava_next", "LlavaNextForConditionalGeneration", "mistral", clip),
        windows,
        qwen,
        of("smolvlm", "SmolVLMForConditionalGeneration", "llama", "smolvlm_vision"),
    ]
}
