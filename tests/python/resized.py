"""The Python half of tests/adapter/resized.rs.

`make DIR` writes, per case, a base, one with a resized vocabulary, one with other new rows, and an adapter that PEFT
trained on the resized one: it brings the embeddings along. `check DIR` loads what was merged.
"""

import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import LNTuningConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config,
    Qwen2ForCausalLM, T5Config, T5ForConditionalGeneration,
)

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
SMALL = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
QWEN2 = (Qwen2ForCausalLM, Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True))
LLAMA = (LlamaForCausalLM, LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=False))
# name -> (class and configuration, new size, arguments of LNTuningConfig)
CASES = {
    "tied": (QWEN2, 44, {}),
    "untied": (LLAMA, 44, {}),
    "tied_input": (QWEN2, 44, dict(modules_to_save=["embed_tokens"])),
    "tied_head": (QWEN2, 44, dict(modules_to_save=["lm_head"])),
    "smaller": ((GPT2LMHeadModel, GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)), 36, {}),
    "bias": ((BertForMaskedLM, BertConfig(**SMALL)), 44, dict(target_modules=["LayerNorm"])),
    "t5": ((T5ForConditionalGeneration, T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
    )), 44, {}),
    "same": (QWEN2, 40, {}),
}


def inputs(case):
    last = 35 if case == "smaller" else 39 if case == "same" else 43
    ids = torch.tensor([[5, 3, 9, 2, 7, 30, 11, last], [6, 3, 8, last, 12, 21, 10, 13]])
    return dict(input_ids=ids, decoder_input_ids=ids.flip(1)) if case == "t5" else dict(input_ids=ids)


def logits(case, model):
    with torch.no_grad():
        return model.eval()(**inputs(case)).logits


def resized(folder, kind, size, seed, to):
    torch.manual_seed(seed)
    model = kind.from_pretrained(folder / "base")
    model.resize_token_embeddings(size, mean_resizing=False)
    if to == "other":
        with torch.no_grad():
            model.get_input_embeddings().weight[-1] += 1.0
    model.save_pretrained(folder / to)
    return kind.from_pretrained(folder / "base" if size == 40 else folder / to)


def make(root):
    for number, (case, ((kind, config), size, arguments)) in enumerate(CASES.items()):
        torch.manual_seed(number)
        folder = root / case
        kind(config).save_pretrained(folder / "base")
        model = resized(folder, kind, size, 1, "resized")
        model.name_or_path = str(folder / "base")
        tuned = get_peft_model(model, LNTuningConfig(**arguments)).eval()
        with torch.no_grad():
            for tensor in tuned.parameters():
                if tensor.requires_grad:
                    tensor.add_(torch.randn_like(tensor) * 0.3)
        tuned.save_pretrained(folder / "adapter", save_embedding_layers=True if case == "same" else "auto")
        reference = dict(base=logits(case, kind.from_pretrained(folder / "resized")), logits=logits(case, tuned))
        resized(folder, kind, size, 2, "other")
        other = PeftModel.from_pretrained(kind.from_pretrained(folder / "other"), str(folder / "adapter"))
        assert torch.equal(logits(case, other), reference["logits"]), case
        reference["other"] = logits(case, kind.from_pretrained(folder / "other"))
        save_file({**inputs(case), **{name: x.contiguous() for name, x in reference.items()}}, folder / "reference.st")


def check(root):
    for case, ((kind, _), size, _) in CASES.items():
        folder = root / case
        expected = load_file(folder / "reference.st")["logits"]
        for merged in ["merged_base", "merged_resized", "merged_other"]:
            model, info = kind.from_pretrained(folder / merged, output_loading_info=True)
            assert not info["missing_keys"] and not info["unexpected_keys"], (case, merged, info)
            assert model.config.vocab_size == size, (case, merged)
            difference = (logits(case, model) - expected).abs().max()
            assert difference <= 1e-6, (case, merged, difference)
        print(case, "ok")


{"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
