"""`ropes.py DIR`: tiny random decoders of transformers whose `config.json` asks for a type of rope, as such files stand on
the Hub: `rope_scaling` of transformers 4 and `rope_parameters` of 5. For each the logits of sequences below, at and above
the original length, and the text that crosses it.

A dynamic rope of transformers remembers the longest sequence that it has seen; each number here is of a fresh model.
"""

import copy
import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
SMALL = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=64, tie_word_embeddings=False,
)
# Per family, what else it needs.
FAMILIES = {
    "cohere": {}, "falcon": dict(new_decoder_architecture=True, num_kv_heads=2), "gemma": dict(head_dim=16),
    "gemma2": dict(head_dim=16),
    "gemma3_text": dict(head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    "gpt_neox": dict(rotary_pct=0.5), "granite": {}, "llama": {}, "mistral": {}, "olmo": {}, "olmo2": {},
    "phi": dict(partial_rotary_factor=0.5), "qwen2": {}, "qwen3": dict(head_dim=16), "smollm3": dict(no_rope_layers=[1, 0]),
    "stablelm": dict(partial_rotary_factor=0.5), "starcoder2": {},
}
YARN = dict(factor=4.0, original_max_position_embeddings=16)
LONG = dict(short_factor=[1.0 + 0.1 * i for i in range(8)], long_factor=[1.0 + 2.0 * i for i in range(8)])
PAIRS4 = dict(short_factor=[1.0, 1.1, 1.3, 1.5], long_factor=[1.0, 2.0, 5.0, 9.0])
CASES = {
    # As the files of known models have it, with small numbers.
    "mistral_yarn_finetuned": ("mistral", dict(rope_scaling=dict(YARN, type="yarn", finetuned=True), sliding_window=9)),
    "qwen3_r1": ("qwen3", dict(head_dim=16, rope_theta=1000000, rope_scaling=dict(YARN, rope_type="yarn", attn_factor=0.87))),
    "qwen2_5": ("qwen2", dict(rope_theta=1000000.0, rope_scaling=dict(YARN, type="yarn"))),
    "phi3_128k": ("phi3", dict(original_max_position_embeddings=16, rope_scaling=dict(LONG, type="longrope"))),
    "phi3_su": ("phi3", dict(original_max_position_embeddings=16, rope_scaling=dict(
        LONG, type="su", original_max_position_embeddings=16,
    ))),
    "phi3_yarn_of_before": ("phi3", dict(original_max_position_embeddings=16, rope_scaling=dict(LONG, type="yarn"))),
    "phi4_mini": ("phi3", dict(
        original_max_position_embeddings=16, partial_rotary_factor=0.5, sliding_window=30,
        rope_scaling=dict(PAIRS4, type="longrope"), rope_theta=500.0,
    )),
    "phi3_of_5": ("phi3", dict(original_max_position_embeddings=16, rope_parameters=dict(
        LONG, rope_type="longrope", rope_theta=500.0, factor=2.0, original_max_position_embeddings=20,
    ))),
    "phi3_original_inside": ("phi3", dict(rope_scaling=dict(LONG, type="longrope", original_max_position_embeddings=16))),
    "llama_dynamic": ("llama", dict(rope_scaling=dict(type="dynamic", factor=2.0), max_position_embeddings=16)),
    "llama_dynamic_of_5": ("llama", dict(max_position_embeddings=17, rope_parameters=dict(
        rope_type="dynamic", factor=3.0, rope_theta=500.0, original_max_position_embeddings=8, alpha=1000,
    ))),
    "llama_3_1": ("llama", dict(rope_theta=500000.0, rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16,
    ))),
    "llama3_without_original": ("llama", dict(rope_parameters=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1, high_freq_factor=4, rope_theta=100.0,
    ))),
    "llama_mscale": ("llama", dict(rope_scaling=dict(
        YARN, type="yarn", factor=40, mscale=0.707, mscale_all_dim=1.0, beta_fast=32, beta_slow=1,
    ))),
    "llama_mscale_0": ("llama", dict(rope_scaling=dict(YARN, type="yarn", mscale=1.0, mscale_all_dim=0.0, beta_fast=0))),
    "yarn_attention_factor": ("llama", dict(rope_parameters=dict(
        YARN, rope_type="yarn", attention_factor=0.5, rope_theta=100.0,
    ))),
    "yarn_attention_factor_null": ("llama", dict(rope_parameters=dict(YARN, rope_type="yarn", attention_factor=None))),
    "yarn_not_truncated": ("llama", dict(rope_parameters=dict(
        YARN, rope_type="yarn", truncate=False, beta_fast=4.0, beta_slow=0.7, rope_theta=100.0,
    ))),
    "yarn_factor_null": ("llama", dict(rope_parameters=dict(YARN, rope_type="yarn", factor=None))),
    "yarn_without_original": ("llama", dict(rope_scaling=dict(type="yarn", factor=4.0))),
    "yarn_original_outside": ("llama", dict(original_max_position_embeddings=32, rope_scaling=dict(YARN, type="yarn"))),
    "both_names": ("llama", dict(rope_scaling=dict(YARN, type="linear", rope_type="yarn"))),
    "both_keys": ("llama", dict(
        rope_theta=700.0, rope_scaling=dict(type="linear", factor=4.0), rope_parameters=dict(YARN, rope_type="yarn"),
    )),
    "llama_longrope": ("llama", dict(rope_scaling=dict(
        LONG, rope_type="longrope", factor=3.0, attention_factor=1, original_max_position_embeddings=16,
    ))),
    "llama_longrope_ratio": ("llama", dict(original_max_position_embeddings=16, rope_scaling=dict(LONG, rope_type="longrope"))),
    "llama_proportional": ("llama", dict(rope_parameters=dict(
        rope_type="proportional", partial_rotary_factor=0.3, rope_theta=500.0,
    ))),
    "llama_default_partial": ("llama", dict(partial_rotary_factor=0.5, rope_theta=500.0)),
    "llama_empty": ("llama", dict(rope_scaling={}, rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=70.0))),
    "neox_theta": ("gpt_neox", dict(rotary_emb_base=500, rope_theta=7.0, rope_scaling=dict(type="linear", factor=2.0))),
    "neox_partial_of_5": ("gpt_neox", dict(rotary_pct=0.25, rope_parameters=dict(
        YARN, rope_type="yarn", rope_theta=500, partial_rotary_factor=0.5,
    ))),
    "gemma3_of_4": ("gemma3_text", dict(FAMILIES["gemma3_text"], rope_theta=700.0, rope_local_base_freq=50.0, rope_scaling=dict(
        rope_type="linear", factor=8.0,
    ))),
    "gemma3_type_of_4": ("gemma3_text", dict(FAMILIES["gemma3_text"], rope_scaling=dict(type="linear", factor=8.0))),
    "gemma3_of_5": ("gemma3_text", dict(FAMILIES["gemma3_text"], rope_parameters=dict(
        full_attention=dict(YARN, rope_type="yarn", rope_theta=100.0, truncate=False),
        sliding_attention=dict(rope_type="dynamic", factor=3.0, rope_theta=70.0),
    ), max_position_embeddings=16)),
    "gemma3_null": ("gemma3_text", dict(FAMILIES["gemma3_text"], rope_parameters=dict(
        full_attention=dict(rope_type="linear", factor=2.0), sliding_attention=None,
    ))),
    "llama_pretraining_tp": ("llama", dict(pretraining_tp=2)),
    "bloom_pretraining_tp": ("bloom", dict(pretraining_tp=4, n_layer=2, n_head=2)),
}
# Those that change while a text grows, and one that does not.
TEXTS = ("phi", "gemma3_of_5", "llama_dynamic", "llama_longrope", "mistral_yarn")
for family, more in FAMILIES.items():
    for name, values in (("dynamic", dict(factor=3.0)), ("yarn", YARN)):
        rope = dict(rope_scaling=dict(values, type=name))
        if family == "gemma3_text":
            rope = dict(values, rope_type=name)
            rope = dict(rope_parameters=dict(full_attention=rope, sliding_attention=dict(rope, rope_theta=50.0)))
        CASES[f"{family}_{name}"] = family, {**more, **rope, "max_position_embeddings": 16}


for case, (model_type, changes) in CASES.items():
    folder = Path(sys.argv[1]) / case
    folder.mkdir()
    written = json.loads(json.dumps({**SMALL, **changes, "model_type": model_type}))
    (folder / "config.json").write_text(json.dumps(written))
    config = CONFIG_MAPPING[model_type].from_dict(json.loads(json.dumps(written)))
    torch.manual_seed(sum(map(ord, case)))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.add_(torch.randn_like(tensor) * (0.1 if "norm" in name or "bias" in name else 0.3))
    model.save_pretrained(folder / "weights")
    (folder / "weights" / "model.safetensors").rename(folder / "model.safetensors")
    ids = torch.randint(3, 64, (2, 28))
    reference = {"input_ids": ids}
    with torch.no_grad():
        for length in (16, 17, 28):
            reference[f"logits.{length}"] = copy.deepcopy(model)(input_ids=ids[:, :length]).logits
        if case.startswith(TEXTS):
            mask = torch.ones(2, 10, dtype=torch.int64)
            for name, padding in (("none", 0), ("left", 3)):
                mask[0, :padding] = 0
                text = copy.deepcopy(model).generate(
                    input_ids=ids[:, :10] * mask, attention_mask=mask, do_sample=False, max_new_tokens=14, eos_token_id=None,
                )
                reference[f"text.{name}"] = text[:, 10:].contiguous()
    save_file(reference, folder / "reference.st")
