"""The Python half of tests/trees and tests/adapter/architectures.rs.

`describe FILE DIR [NAME …]` writes to FILE, for every architecture below or for those named, what its module tree is
(from a model without weights): tensors with shapes, the norms that have parameters, and the modules that PEFT tunes by
its own table. Each becomes a model directory in DIR, with the names that transformers gives tensors on disk; all but
vectors are shrunk to one element. `select FILE` reads configurations of ours and prints the modules that PEFT tunes with them.
"""

import json
import re
import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import LNTuningConfig
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING as TABLE
from peft.tuners.ln_tuning import LNTuningModel
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING
from transformers.core_model_loading import revert_weight_conversion

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")

# Auto class -> model types.
ARCHITECTURES = {
    "AutoModelForCausalLM": [
        "llama", "llama4_text", "mistral", "ministral", "mixtral", "phi3", "qwen2", "qwen2_moe", "granite",
        "granitemoe", "smollm3", "glm", "gpt_oss", "qwen3", "qwen3_moe", "qwen3_next", "gemma", "gemma2",
        "gemma3_text", "olmo2", "olmo3", "exaone4", "cohere", "cohere2", "glm4", "deepseek_v2", "deepseek_v3",
        "stablelm", "starcoder2", "phimoe", "nemotron", "phi", "gpt2", "gpt_neo", "gpt_bigcode", "gptj", "codegen",
        "gpt_neox", "bloom", "falcon", "mpt", "opt", "mamba", "mamba2", "falcon_mamba", "jamba",
    ],
    "AutoModelForSeq2SeqLM": [
        "t5", "mt5", "umt5", "bart", "mbart", "pegasus", "m2m_100", "blenderbot", "blenderbot-small", "marian",
    ],
    "AutoModelForSpeechSeq2Seq": ["whisper", "speech_to_text"],
    "AutoModelForMaskedLM": [
        "bert", "electra", "deberta", "deberta-v2", "roberta", "xlm-roberta", "camembert", "mpnet", "longformer",
        "distilbert", "albert", "modernbert",
    ],
    "AutoModelForImageClassification": ["vit", "beit", "swin", "dinov2"],
    "AutoModel": ["deit", "clip", "siglip", "siglip2", "wav2vec2", "hubert"],
    "AutoModelForImageTextToText": [
        "gemma3", "llava", "qwen2_vl", "qwen2_5_vl", "blip-2", "llava_next", "llava_onevision", "vipllava", "paligemma",
        "mistral3", "internvl", "idefics2", "idefics3", "smolvlm", "qwen3_vl",
    ],
}
# Defaults of transformers that do not build.
NEEDED = {"ministral": dict(head_dim=128), "nemotron": dict(num_key_value_heads=8)}
# Variants of a configuration have rows of their own.
VARIANTS = {
    "falcon new": ("falcon", dict(new_decoder_architecture=True)),
    "falcon 7b": ("falcon", dict(parallel_attn=True, new_decoder_architecture=False)),
    "phi qk": ("phi", dict(qk_layernorm=True)),
    "cohere qk": ("cohere", dict(use_qk_norm=True)),
    "stablelm qk": ("stablelm", dict(qk_layernorm=True)),
    "wav2vec2 stable": ("wav2vec2", dict(do_stable_layer_norm=True, feat_extract_norm="layer")),
}
LAYERS = ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
          "num_decoder_layers"]


def shrink(config):
    """Two layers each: the names are what matters."""
    for name in LAYERS:
        if isinstance(getattr(config, name, None), int):
            count = 2
            if config.model_type == "jamba":
                count = 8  # one attention layer among the others
            if config.model_type == "qwen3_next":
                count = 4
            setattr(config, name, count)
            for extra in ("layer_types", "mlp_layer_types", "no_rope_layers"):
                kinds = getattr(config, extra, None)
                if isinstance(kinds, list) and len(kinds) > count:
                    setattr(config, extra, kinds[:count])
    if config.model_type == "gpt_neo":
        config.attention_types = [[["global", "local"], 1]]
        config.attention_layers = ["global", "local"]
    for part in ("text_config", "vision_config", "qformer_config"):
        if getattr(config, part, None) is not None:
            shrink(getattr(config, part))
    return config


def models():
    for auto, types in ARCHITECTURES.items():
        for model_type in types:
            yield model_type, model_type, auto, NEEDED.get(model_type, {})
    for name, (model_type, changes) in VARIANTS.items():
        auto = next(auto for auto, types in ARCHITECTURES.items() if model_type in types)
        yield name, model_type, auto, changes


def build(model_type, auto, changes):
    config = shrink(CONFIG_MAPPING[model_type](**changes))
    with torch.device("meta"):
        return getattr(transformers, auto).from_config(config)


def norms(model):
    """Modules that normalise by their class, and have parameters. (The one GroupNorm is among speech models'.)"""
    for name, module in model.named_modules():
        kind = type(module).__name__
        own = dict(module.named_parameters(recurse=False))
        if re.search(r"(LayerNorm|RMSNorm|LayerNorm1P|RMSNormGated|GroupNorm)$", kind) and own:
            yield name


def tuned(model, config):
    return sorted(LNTuningModel(model, config, "default").targeted_module_names)


def describe(path, root, *names):
    rows = []
    for name, model_type, auto, changes in models():
        if names and name not in names:
            continue
        model = build(model_type, auto, changes)
        save(model, Path(root) / name)
        parameters = {key for key, _ in model.named_parameters(remove_duplicate=False)}
        tensors = [
            dict(name=key, shape=list(tensor.shape), parameter=key in parameters)
            for key, tensor in model.state_dict().items()
        ]
        row = dict(name=name, model_type=model_type, tensors=tensors, norms=sorted(norms(model)))
        if model_type in TABLE:
            row["table"] = sorted(TABLE[model_type])
            # Containers are wrapped whole by PEFT and stand for the modules in them here.
            row["peft"] = tuned(model, LNTuningConfig(target_modules=TABLE[model_type]))
        rows.append(row)
    with open(path, "w") as file:
        json.dump(dict(rows=rows, table=sorted(TABLE)), file)


def save(model, folder):
    model.config.save_pretrained(folder)
    tensors = {}
    tied = set(model.all_tied_weights_keys)
    for key, tensor in revert_weight_conversion(model, model.state_dict()).items():
        if key not in tied:
            shape = tensor.shape if tensor.ndim < 2 or "norm" in key else [1] * tensor.ndim
            tensors[key] = torch.zeros(shape, dtype=tensor.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def select(path):
    with open(path) as file:
        configs = json.load(file)
    for name, model_type, auto, changes in models():
        for choice, config in configs[name].items():
            fields = {k: config[k] for k in ("target_modules", "exclude_modules", "modules_to_save")}
            chosen = tuned(build(model_type, auto, changes), LNTuningConfig(**fields))
            print(json.dumps([name, choice, chosen]))


if __name__ == "__main__":
    {"describe": describe, "select": select}[sys.argv[1]](*sys.argv[2:])
