"""`decoders.py DIR [--checkpoints] [CASE …]`: tiny random decoders of transformers: logits for both sides of padding, all
gradients, and text. Without a name all cases are made; with `--checkpoints`, only the directories.

Text is what `generate` gives greedily, for a batch with padding on the left and for one without.
"""

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
    "olmo": ("olmo", dict(clip_qkv=0.2)),
    "olmo_without_clip": ("olmo", dict(attention_bias=True, tie_word_embeddings=True)),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", dict(sliding_window=6)),
    "phi3_partial_rope": ("phi3", dict(
        head_dim=8, rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5),
    )),
    "smollm3": ("smollm3", dict(no_rope_layer_interval=2)),
    "gemma2": ("gemma2", dict(head_dim=16, query_pre_attn_scalar=20, sliding_window=4)),
    "stablelm": ("stablelm", {}),
    "stablelm_options": ("stablelm", dict(use_qkv_bias=True, qk_layernorm=True, use_parallel_residual=True)),
    "starcoder2": ("starcoder2", dict(sliding_window=5)),
    "starcoder2_without_bias": ("starcoder2", dict(use_bias=False, tie_word_embeddings=False)),
    "cohere": ("cohere", dict(num_key_value_heads=2, logit_scale=1.0)),
    "cohere_qk_norm": ("cohere", dict(use_qk_norm=True, attention_bias=True, logit_scale=0.5)),
    "gpt2": ("gpt2", {}),
    "gpt2_saved_without_head": ("gpt2", {}),
    "gpt2_without_prefix": ("gpt2", {}),
    "gpt2_options": ("gpt2", dict(n_inner=40, scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False)),
    "gpt2_without_scale": ("gpt2", dict(scale_attn_weights=False, activation_function="relu")),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox_options": ("gpt_neox", dict(
        use_parallel_residual=False, attention_bias=False,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5),
    )),
    "opt": ("opt", dict(ffn_dim=48, max_position_embeddings=64)),
    "opt_350m": ("opt", dict(ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False, enable_bias=False)),
    "bloom": ("bloom", {}),
    "bloom_six_heads": ("bloom", dict(
        n_head=6, hidden_size=48, apply_residual_connection_post_layernorm=True, tie_word_embeddings=False,
    )),
    "falcon_multi_query": ("falcon", {}),
    "falcon_new": ("falcon", dict(new_decoder_architecture=True, num_kv_heads=2, bias=True)),
    "falcon_one_norm": ("falcon", dict(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1)),
    "falcon_alibi": ("falcon", dict(alibi=True, multi_query=False, parallel_attn=False, ffn_hidden_size=40, bias=True)),
    "phi": ("phi", dict(num_key_value_heads=4)),
    "phi_qk_norm": ("phi", dict(qk_layernorm=True)),
    "gptj": ("gptj", dict(rotary_dim=4)),
}
# Those that call things by other names.
RENAMED = {
    "gpt2": dict(n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "gptj": dict(n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "bloom": dict(hidden_size=32, n_layer=3, n_head=4),
    "falcon": dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4),
    "opt": dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4),
}
TOKENS = dict(vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)

for case in [name for name in sys.argv[2:] if name in CASES] or CASES:
    model_type, arguments = CASES[case]
    folder = Path(sys.argv[1]) / case
    torch.manual_seed(sum(map(ord, case)))
    sizes = {**TOKENS, **RENAMED[model_type]} if model_type in RENAMED else SMALL
    config = CONFIG_MAPPING[model_type](**{**sizes, **arguments})
    # Eager Falcon adds its bias twice; the fused way is the default.
    attention = "sdpa" if case == "falcon_alibi" else "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            small = "norm" in name or "ln_" in name or "bias" in name
            tensor.add_(torch.randn_like(tensor) * (0.3 if small else 0.1))
    model.save_pretrained(folder, max_shard_size="30KB" if case == "llama" else "1GB")

    if case == "gpt2_saved_without_head":
        model.transformer.save_pretrained(folder)
    if case == "gpt2_without_prefix":
        # As the first checkpoints were, with the buffers that they held.
        tensors = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    if "--checkpoints" in sys.argv:
        continue
    input_ids = torch.randint(3, 64, (3, 11))
    reference = {"input_ids": input_ids}
    for side in ("right", "left", "none"):
        mask = torch.ones_like(input_ids)
        if side == "right":
            mask[0, 8:], mask[1, 4:] = 0, 0
        if side == "left":
            mask[0, :3], mask[1, :7] = 0, 0
            mask_left = mask
        model.zero_grad()
        logits = model(input_ids=input_ids, attention_mask=None if side == "none" else mask).logits
        reference[f"{side}.mask"], reference[f"{side}.logits"] = mask, logits.detach().clone()
        # Rows of padding do not count.
        (logits * mask[..., None]).square().mean().backward()
        for name, tensor in model.named_parameters():
            reference[f"{side}.grad.{name}"] = tensor.grad.clone()
    # Layers of eager attention differ from the fused ones in the last bits; the likeliest token must not depend on them.
    with torch.no_grad():
        padded = torch.where(mask_left.bool(), input_ids, 0)
        for name, ids, mask in (("left", padded, mask_left), ("none", input_ids, torch.ones_like(input_ids))):
            text = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=32)
            reference[f"{name}.text"] = text[:, ids.shape[1]:].contiguous()
    save_file(reference, folder / "reference.st")
