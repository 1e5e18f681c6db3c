"""`decoders.py DIR`: tiny random decoders of transformers, with logits for both sides of padding and all gradients."""

import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
SMALL = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
CASES = {
    "llama": ("llama", {}),
    "llama_tied_bias": ("llama", dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
    "llama3_rope": ("llama", dict(rope_parameters=LLAMA3, max_position_embeddings=128)),
    "llama_linear_rope": ("llama", dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=500.0))),
    "llama_head_dim": ("llama", dict(head_dim=12, num_key_value_heads=1)),
    "mistral": ("mistral", dict(sliding_window=None)),
    "mistral_window": ("mistral", dict(sliding_window=5)),
    "qwen2": ("qwen2", {}),
    "qwen2_window": ("qwen2", dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    "qwen3": ("qwen3", dict(head_dim=8)),
    "gemma": ("gemma", dict(head_dim=16, tie_word_embeddings=True)),
    "gemma3": ("gemma3_text", dict(
        head_dim=16, query_pre_attn_scalar=20, sliding_window=4, layer_types=["sliding_attention"] * 2 + ["full_attention"],
    )),
    "granite": ("granite", dict(
        embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5, attention_multiplier=0.3,
    )),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", dict(sliding_window=6)),
    "phi3_partial_rope": ("phi3", dict(
        head_dim=8, rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5),
    )),
    "smollm3": ("smollm3", dict(no_rope_layer_interval=2)),
    "gemma2": ("gemma2", dict(head_dim=16, query_pre_attn_scalar=20, sliding_window=4)),
}

for case, (model_type, arguments) in CASES.items():
    folder = Path(sys.argv[1]) / case
    torch.manual_seed(sum(map(ord, case)))
    config = CONFIG_MAPPING[model_type](**{**SMALL, **arguments})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.add_(torch.randn_like(tensor) * (0.3 if "norm" in name or "bias" in name else 0.1))
    model.save_pretrained(folder, max_shard_size="30KB" if case == "llama" else "1GB")

    input_ids = torch.randint(3, 64, (3, 11))
    reference = {"input_ids": input_ids}
    for side in ("right", "left", "none"):
        mask = torch.ones_like(input_ids)
        if side == "right":
            mask[0, 8:], mask[1, 4:] = 0, 0
        if side == "left":
            mask[0, :3], mask[1, :7] = 0, 0
        model.zero_grad()
        logits = model(input_ids=input_ids, attention_mask=None if side == "none" else mask).logits
        reference[f"{side}.mask"], reference[f"{side}.logits"] = mask, logits.detach().clone()
        # Padding's own rows are nobody's business.
        (logits * mask[..., None]).square().mean().backward()
        for name, tensor in model.named_parameters():
            reference[f"{side}.grad.{name}"] = tensor.grad.clone()
    save_file(reference, folder / "reference.st")
