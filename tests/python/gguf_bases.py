"""`gguf_bases.py DIR [CASE …]`: tiny random decoders of transformers as GGUF files, in the way of llama.cpp's converter, and logits.

`DIR/CASE.gguf`, `DIR/CASE.st` (`input_ids`, `logits`, and `gguf.logits` where transformers reads the file itself) and
`DIR/CASE.json`, the configuration. Logits are those of the weights that the file holds: dequantised ones, norms that had
1 added and taken away again.

`gguf_bases.py DIR --saved CASE …`: opens the directories `DIR/CASE`, and compares their logits.
"""

import functools
import json
import re
import sys
import warnings
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as T
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
# transformers asks for it once per module.
gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
OUT = Path(sys.argv[1])
TOKENS = dict(vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
SMALL = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, **TOKENS,
)
OLD = dict(n_layer=3, n_head=4, **TOKENS)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)
LONG = dict(
    rope_type="longrope", rope_theta=10000.0, short_factor=[1.0 + i / 8 for i in range(6)],
    long_factor=[2.0 + i for i in range(6)], partial_rotary_factor=0.75,
)
# The case, its architecture in GGUF, its type of transformers, its settings, the type of its matrices, and whether
# transformers reads the file as what it was.
CASES = {
    "llama": ("llama", "llama", {}, T.Q8_0, True),
    "llama_f16": ("llama", "llama", dict(tie_word_embeddings=True), T.F16, True),
    "llama_bias": ("llama", "llama", dict(attention_bias=True, mlp_bias=True), T.Q4_0, False),
    "llama_heads": ("llama", "llama", dict(head_dim=24, num_key_value_heads=1), T.F32, True),
    "llama3": ("llama", "llama", dict(rope_parameters=LLAMA3), T.Q4_1, False),
    "llama_linear": (
        "llama", "llama", dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=500.0)), T.BF16, False,
    ),
    "mistral": ("llama", "mistral", dict(sliding_window=None), T.Q5_0, True),
    "mistral_window": ("llama", "mistral", dict(sliding_window=6), T.Q8_0, False),
    "qwen2": ("qwen2", "qwen2", dict(rope_parameters=dict(rope_type="default", rope_theta=1e6)), T.Q5_1, True),
    "qwen2_yarn": ("qwen2", "qwen2", dict(rope_parameters=YARN, tie_word_embeddings=True), T.Q8_0, False),
    "qwen3": ("qwen3", "qwen3", dict(head_dim=128), T.Q4_0, True),
    "gemma": ("gemma", "gemma", dict(head_dim=32), T.Q8_0, False),
    "gemma2": ("gemma2", "gemma2", dict(head_dim=256, sliding_window=5, query_pre_attn_scalar=256), T.Q8_0, True),
    "gemma2_caps": (
        "gemma2", "gemma2", dict(
            head_dim=32, query_pre_attn_scalar=32, sliding_window=4, attn_logit_softcapping=2.0, final_logit_softcapping=1.5,
        ), T.F32, False,
    ),
    "gemma3": (
        "gemma3", "gemma3_text", dict(
            head_dim=32, query_pre_attn_scalar=32, sliding_window=4, num_hidden_layers=7,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                sliding_attention=dict(rope_type="default", rope_theta=10000.0),
            ),
        ), T.Q4_0, False,
    ),
    "phi3": ("phi3", "phi3", dict(sliding_window=None), T.Q8_0, True),
    "phi3_long": (
        "phi3", "phi3", dict(
            sliding_window=7, rope_parameters=LONG, original_max_position_embeddings=8, max_position_embeddings=128,
        ), T.Q8_0, False,
    ),
    "phi": ("phi2", "phi", dict(num_key_value_heads=4, intermediate_size=256), T.Q4_1, False),
    "phi_fused": ("phi2", "phi", dict(num_key_value_heads=4, intermediate_size=256), T.Q8_0, False),
    "starcoder2": ("starcoder2", "starcoder2", dict(sliding_window=None), T.Q8_0, True),
    "gpt2": ("gpt2", "gpt2", dict(n_embd=64, n_positions=1024, **OLD), T.Q8_0, True),
    "gpt2_untied": ("gpt2", "gpt2", dict(n_embd=64, n_positions=128, tie_word_embeddings=False, **OLD), T.F16, False),
    "bloom": ("bloom", "bloom", dict(hidden_size=64, **OLD), T.Q8_0, True),
    "falcon_7b": ("falcon", "falcon", dict(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=128, **TOKENS,
    ), T.Q8_0, True),
    "falcon_40b": ("falcon", "falcon", dict(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, new_decoder_architecture=True, num_kv_heads=2, **TOKENS,
    ), T.Q4_0, False),
    "falcon_11b": ("falcon", "falcon", dict(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, new_decoder_architecture=True, num_kv_heads=2,
        num_ln_in_parallel_attn=1, rope_parameters=dict(rope_type="default", rope_theta=500042.0), **TOKENS,
    ), T.Q8_0, False),
    "gptneox": ("gptneox", "gpt_neox", {}, T.Q8_0, False),
    "gptneox_sequential": ("gptneox", "gpt_neox", dict(use_parallel_residual=False), T.F16, False),
    "stablelm": ("stablelm", "stablelm", {}, T.Q8_0, True),
    "stablelm_options": (
        "stablelm", "stablelm", dict(use_qkv_bias=True, qk_layernorm=True, use_parallel_residual=True), T.Q5_1, False,
    ),
    "olmo": ("olmo", "olmo", dict(clip_qkv=0.2), T.Q8_0, False),
    "olmo2": ("olmo2", "olmo2", {}, T.Q8_0, False),
    "granite": ("granite", "granite", dict(
        embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5, attention_multiplier=0.3,
    ), T.Q8_0, False),
    "cohere": ("command-r", "cohere", dict(logit_scale=0.5, use_qk_norm=True), T.Q8_0, False),
    "smollm3": ("smollm3", "smollm3", dict(num_hidden_layers=5, no_rope_layer_interval=4), T.Q8_0, False),
}
ARCHITECTURES = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
PAIRED = ("llama", "olmo", "granite", "smollm3")
PLUS_ONE = ("gemma", "gemma2", "gemma3")


def first(config, *names, default=None):
    found = [getattr(config, name) for name in names if getattr(config, name, None) is not None]
    return found[0] if found else default


def metadata(writer, arch, config):
    width, heads = config.hidden_size, config.num_attention_heads
    head_dim = first(config, "head_dim", default=width // heads)
    kv_heads = first(config, "num_kv_heads", "num_key_value_heads", default=heads)
    if config.model_type == "falcon" and not config.new_decoder_architecture:
        kv_heads = 1
    writer.add_context_length(first(config, "max_position_embeddings", "n_positions", "seq_length", default=2048))
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    inner = first(config, "intermediate_size", "n_inner", "ffn_hidden_size", default=4 * width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    if arch not in ("gpt2", "bloom", "gptneox"):
        writer.add_head_count_kv(kv_heads)
    if (eps := first(config, "rms_norm_eps")) is not None:
        writer.add_layer_norm_rms_eps(eps)
    else:
        writer.add_layer_norm_eps(first(config, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", default=1e-5))
    if arch in ("qwen3", *PLUS_ONE) or (arch == "llama" and head_dim != width // heads):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch in ("llama", "granite", "smollm3"):
        writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(7)
    writer.add_quantization_version(2)
    for token in ("bos", "eos"):
        getattr(writer, f"add_{token}_token_id")(getattr(config, f"{token}_token_id"))
    writer.add_pad_token_id(config.pad_token_id)
    # llama.cpp opens no file without a tokenizer.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"<{token}>" for token in range(config.vocab_size)])
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (config.vocab_size - 3))
    writer.add_token_merges(["< 1"])
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    if arch not in ("gpt2", "bloom", "gemma", "gemma2"):
        part = rope.get("partial_rotary_factor", 1.0)
        if arch not in ("gemma3", "qwen2", "qwen3", "falcon", "starcoder2"):
            writer.add_rope_dimension_count(int(head_dim * part))
        writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    half = int(head_dim * rope.get("partial_rotary_factor", 1.0)) // 2
    if kind == "llama3":
        wave = 2 * np.pi * rope["rope_theta"] ** (np.arange(half) / half)
        original, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
        blend = np.clip((original / wave - low) / (high - low), 0, 1)
        writer.add_tensor("rope_freqs.weight", (1 / ((1 - blend) / rope["factor"] + blend)).astype(np.float32))
    if kind == "longrope":
        original = config.original_max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        factor = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(factor) / np.log(original))))
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(rope[f"{name}_factor"], dtype=np.float32))
    if arch in ("gemma2", "gemma3", "phi3") or (arch == "llama" and first(config, "sliding_window")):
        writer.add_sliding_window(config.sliding_window or 0)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == "olmo":
        writer.add_clamp_kqv(config.clip_qkv)
    if arch == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if arch == "command-r":
        writer.add_logit_scale(config.logit_scale)
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    if arch in ("stablelm", "gptneox"):
        writer.add_parallel_residual(config.use_parallel_residual)
    if arch == "falcon":
        writer.add_tensor_data_layout("jploski")


def in_file(name, array, arch, config):
    """The array in the order of llama.cpp."""
    heads = config.num_attention_heads
    kv_heads = first(config, "num_kv_heads", "num_key_value_heads", default=heads)
    if arch in PAIRED and re.search(r"\.[qk]_proj\.", name):
        heads = heads if ".q_proj." in name else kv_heads
        return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    if "query_key_value" in name:
        if config.model_type == "falcon" and not config.new_decoder_architecture:
            kv_heads = 1
        elif config.model_type != "falcon":
            kv_heads = heads
        groups = array.reshape(kv_heads, heads // kv_heads + 2, -1, *array.shape[1:])
        parts = groups[:, :-2], groups[:, -2:-1], groups[:, -1:]
        return np.concatenate([part.reshape(-1, *array.shape[1:]) for part in parts])
    return array


def convert(case, arch, model, block_type):
    """Writes the file, and gives the model the weights that it holds."""
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(OUT / f"{case}.gguf", arch)
    metadata(writer, arch, config)
    names = gguf.get_tensor_name_map(ARCHITECTURES[arch], config.num_hidden_layers)
    norms, fused = {}, {}
    with torch.no_grad():
        for name, tensor in state.items():
            tied = name == "lm_head.weight" and config.tie_word_embeddings
            if tied or name.endswith(("rotary_emb.inv_freq", ".attn.bias", ".masked_bias")):
                continue
            turned = arch == "gpt2" and re.search(r"(c_attn|c_proj|c_fc)\.weight", name)
            array = tensor.numpy().copy()
            array = array.T if turned else array
            plus = arch in PLUS_ONE and name.endswith("norm.weight")
            array = array + np.float32(1) if plus else array
            own = T.F32 if array.ndim == 1 or "norm" in name or "wpe" in name else block_type
            held = gguf.quants.dequantize(gguf.quants.quantize(array, own), own).reshape(array.shape)
            held = held - np.float32(1) if plus else held
            tensor.copy_(torch.from_numpy((held.T if turned else held).copy()))
            if listed := re.fullmatch(r"(.*_layernorm)\.norms\.(\d+)\.weight", name):
                norms.setdefault(listed[1], []).append(array)
                continue
            if case == "phi_fused" and (part := re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.[qkv]_proj\.(.*)", name)):
                # As in the first files of Phi 2.
                parts = fused.setdefault(f"blk.{part[1]}.attn_qkv.{part[2]}", [])
                parts.append((gguf.quants.quantize(array, own), own))
                continue
            stem, ending = name.rsplit(".", 1)
            # Bloom's names are those of the model without a head.
            stem = names.get_name(stem) or names.get_name(stem.removeprefix("transformer."))
            assert stem is not None, name
            data = gguf.quants.quantize(np.ascontiguousarray(in_file(name, array, arch, config)), own)
            writer.add_tensor(f"{stem}.{ending}", data, raw_dtype=own)
        for name, arrays in norms.items():
            writer.add_tensor(f"{names.get_name(name)}.weight", np.stack(arrays))
        for name, parts in fused.items():
            writer.add_tensor(name, np.concatenate([part for part, _ in parts]), raw_dtype=parts[0][1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if "--saved" in sys.argv:
    for case in sys.argv[3:]:
        reference = load_file(OUT / f"{case}.st")
        model, info = AutoModelForCausalLM.from_pretrained(OUT / case, attn_implementation="eager", output_loading_info=True)
        assert not any(info.values()), (case, info)
        with torch.no_grad():
            off = (model.eval()(reference["input_ids"]).logits - reference["logits"]).abs().max().item()
        assert off <= 1e-4, (case, off)
    sys.exit()

for case in [name for name in sys.argv[2:] if name in CASES] or CASES:
    arch, model_type, arguments, block_type, is_read = CASES[case]
    torch.manual_seed(sum(map(ord, case)))
    sizes = {} if set(arguments) & {"n_layer", "new_decoder_architecture"} or model_type == "falcon" else SMALL
    config = CONFIG_MAPPING[model_type](**{**sizes, **arguments})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            small = "norm" in name or "ln_" in name or "bias" in name
            tensor.add_(torch.randn_like(tensor) * (0.3 if small else 0.1))
        convert(case, arch, model, block_type)
        input_ids = torch.randint(3, 64, (2, 20))
        found = {"input_ids": input_ids, "logits": model(input_ids).logits}
        if is_read:
            again = AutoModelForCausalLM.from_pretrained(OUT, gguf_file=f"{case}.gguf", attn_implementation="eager")
            found["gguf.logits"] = again.eval()(input_ids).logits
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, OUT / f"{case}.st")
    (OUT / f"{case}.json").write_text(json.dumps(model.config.to_dict()))
