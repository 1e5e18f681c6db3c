"""The Python half of tests/adapter/merge.rs.

`make DIR` writes, per case, a model directory, an adapter of PEFT for it, and what PEFT's merge_and_unload makes of
them. `check DIR` compares that with ours: every tensor bit for bit, after loading both with transformers.
"""

import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import LNTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification,
)

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
LLAMA = LlamaConfig(**SMALL, num_key_value_heads=2, vocab_size=96, tie_word_embeddings=True)

# name -> (class, configuration, dtype, arguments of LNTuningConfig, shard size)
CASES = {
    "llama_bf16_shards": (LlamaForCausalLM, LLAMA, torch.bfloat16, dict(task_type="CAUSAL_LM"), "10KB"),
    "llama_f32": (LlamaForCausalLM, LLAMA, torch.float32, dict(target_modules=["norm", "1.mlp.up_proj"]), "50GB"),
    "bert_f16_head": (
        BertForSequenceClassification, BertConfig(**SMALL, vocab_size=64, num_labels=3), torch.float16,
        dict(target_modules=["LayerNorm"], modules_to_save=["classifier"]), "50GB",
    ),
    # On disk `vit.encoder.layer.0`, in memory `vit.layers.0`.
    "vit_former_names": (
        ViTForImageClassification, ViTConfig(**SMALL, image_size=12, patch_size=3, num_labels=4), torch.float32,
        dict(target_modules=["layernorm_before", "layernorm_after", "layernorm"]), "20KB",
    ),
}


def make(root):
    for case, (kind, config, dtype, arguments, shard_size) in CASES.items():
        torch.manual_seed(len(case))
        model = kind(config).to(dtype)
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(torch.randn_like(tensor) * 0.1)
        base = root / case / "base"
        model.save_pretrained(base, max_shard_size=shard_size)
        (base / "tokenizer.json").write_text("{}")
        (base / "nested").mkdir()
        (base / "nested" / "notes.txt").write_text("keep me")
        (base / "pytorch_model.bin").write_bytes(b"stale")
        tuned = get_peft_model(model, LNTuningConfig(**arguments))
        # Trained in f32, so that merging into the model's kind rounds.
        with torch.no_grad():
            for tensor in tuned.parameters():
                if tensor.requires_grad:
                    tensor.data = tensor.data.float() + torch.randn(tensor.shape) * 0.3
        tuned.save_pretrained(root / case / "adapter")

        fresh = kind.from_pretrained(base, dtype=dtype)
        merged = load(fresh, root / case / "adapter").merge_and_unload()
        # PEFT leaves its wrapper around modules_to_save: what it computes with is in there.
        for name, module in list(merged.named_modules()):
            if hasattr(module, "modules_to_save"):
                merged.set_submodule(name, module.modules_to_save["default"])
        merged.save_pretrained(root / case / "peft_merged")


def load(model, adapter):
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter))


def check(root):
    for case, (kind, _, dtype, _, _) in CASES.items():
        folder = root / case
        ours, info = kind.from_pretrained(folder / "merged", dtype="auto", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], (case, info)
        theirs = kind.from_pretrained(folder / "peft_merged", dtype="auto")
        base = kind.from_pretrained(folder / "base", dtype="auto")
        mine, other, before = ours.state_dict(), theirs.state_dict(), base.state_dict()
        assert mine.keys() == other.keys(), case
        changed = 0
        for name, tensor in mine.items():
            assert tensor.dtype == dtype == other[name].dtype, (case, name)
            assert torch.equal(tensor, other[name]), (case, name)
            changed += not torch.equal(tensor, before[name])
        assert 0 < changed < len(mine), case
        for scale in (0.7, -0.5):
            scaled = kind.from_pretrained(folder / f"scaled_{scale}", dtype="auto").state_dict()
            expected = dict(before)
            for key, tensor in load_file(folder / "adapter" / "adapter_model.safetensors").items():
                name = key.removeprefix("base_model.model.").replace("ln_tuning_layers.", "")
                start = before[name].double()
                expected[name] = (start + scale * (tensor.double() - start)).to(dtype)
            for name, tensor in scaled.items():
                assert tensor.dtype == dtype and torch.equal(tensor, expected[name]), (case, scale, name)
        print(case, "ok")


{"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
