"""The Python half of tests/adapter/peft_interop.rs.

`make DIR` writes, per case, the state dict of a tiny random model, a trained adapter that PEFT saved, and what PEFT
makes of them. `check DIR` loads the adapters that the Rust half wrote, with every warning an error.
"""

import json
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import LNTuningConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig, BertForTokenClassification, DistilBertConfig, DistilBertForSequenceClassification, LlamaConfig,
    LlamaForCausalLM, LlamaForSequenceClassification,
)

torch.set_num_threads(1)
NORMS = ["input_layernorm", "post_attention_layernorm", "norm"]



class Gated(torch.nn.Module):
    """A block with a tensor of its own beside its modules."""

    def __init__(self, size):
        super().__init__()
        self.gate = torch.nn.Parameter(torch.ones(size))
        self.up = torch.nn.Linear(size, size)

    def forward(self, x):
        return x + self.gate * self.up(x).relu()


class Plain(torch.nn.Module):
    """Not of transformers."""

    def __init__(self, config):
        super().__init__()
        self.embed = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = torch.nn.ModuleList(Gated(config.hidden_size) for _ in range(2))
        self.norm = torch.nn.LayerNorm(config.hidden_size)

    def forward(self, input_ids):
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return SimpleNamespace(logits=self.norm(hidden))


# name -> (model class, arguments of LNTuningConfig)
CASES = {
    "by_model_type": (LlamaForCausalLM, dict(task_type="CAUSAL_LM")),
    "list": (LlamaForCausalLM, dict(target_modules=NORMS)),
    "regex": (LlamaForCausalLM, dict(target_modules=r".*layers\.(?!0\.)\d+\.(input|post_attention)_layernorm")),
    "excluded": (LlamaForCausalLM, dict(target_modules=NORMS, exclude_modules=["layers.0.input_layernorm"])),
    "linear": (LlamaForCausalLM, dict(target_modules=["q_proj", "norm"])),
    "container": (LlamaForCausalLM, dict(target_modules=["layers.1.mlp", "norm"])),
    "head": (LlamaForSequenceClassification, dict(task_type="SEQ_CLS", target_modules=NORMS)),
    "own_tensors": (Plain, dict(target_modules=["layers.0", "1.up", "norm"])),
    "top_norm_only": (LlamaForCausalLM, dict(target_modules=r"model\.norm")),
    # PEFT compares the letters at the end of a path: `pre_classifier` is saved, `attention.output.dense` too.
    "letters_of_the_task": (
        DistilBertForSequenceClassification, dict(task_type="SEQ_CLS", target_modules=["output_layer_norm"]),
    ),
    "letters": (
        BertForTokenClassification,
        dict(task_type="TOKEN_CLS", target_modules=["LayerNorm"], modules_to_save=["put.dense"]),
    ),
    "letters_of_a_norm": (LlamaForCausalLM, dict(target_modules=["q_proj"], modules_to_save=["input_layernorm", "norm"])),
    "nothing_to_save": (LlamaForCausalLM, dict(target_modules=NORMS, task_type="TOKEN_CLS")),
}


def base(case):
    kind = CASES[case][0]
    small = dict(vocab_size=50, num_labels=3, pad_token_id=0, attn_implementation="eager")
    if kind is DistilBertForSequenceClassification:
        config = DistilBertConfig(dim=32, hidden_dim=48, n_layers=2, n_heads=4, **small)
    else:
        small.update(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        config = BertConfig(**small) if kind is BertForTokenClassification else LlamaConfig(
            num_key_value_heads=2, tie_word_embeddings=False, **small
        )
    torch.manual_seed(sum(map(ord, case)))
    model = kind(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def inputs():
    return torch.arange(1, 25).view(2, 12)


def logits(model):
    with torch.no_grad():
        return model(input_ids=inputs()).logits


def quiet(function):
    """Every warning is an error, but for two that this pair of versions gives for PEFT's own adapters as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        return function()


def make(root):
    for case, (_, arguments) in CASES.items():
        folder = root / case
        folder.mkdir()
        model = base(case)
        save_file({k: v.clone() for k, v in model.state_dict().items()}, folder / "base.safetensors")
        (folder / "asked.json").write_text(json.dumps(dict(arguments, peft_type="LN_TUNING")))
        tuned = get_peft_model(model, LNTuningConfig(**arguments)).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for tensor in tuned.parameters():
                if tensor.requires_grad:
                    tensor.add_(torch.randn_like(tensor) * 0.2)
        tuned.save_pretrained(folder / "peft")
        trainable, total = tuned.get_nb_trainable_parameters()
        targeted = sorted(name for name in tuned.base_model.targeted_module_names)
        facts = dict(trainable=trainable, total=total, targeted=targeted)
        (folder / "facts.json").write_text(json.dumps(facts))
        save_file({"logits": logits(tuned)}, folder / "peft_logits.safetensors")


def check(root):
    for case in CASES:
        folder = root / case
        expected = load_file(folder / "peft_logits.safetensors")["logits"]

        # PEFT's adapter, loaded and merged by us.
        merged = base(case)
        merged.load_state_dict(load_file(folder / "ours_merged.safetensors"), strict=True)
        assert torch.equal(logits(merged), expected), f"{case}: PEFT's adapter, merged by us"

        # PEFT's adapter, loaded and saved by us, in PEFT.
        again = quiet(lambda: PeftModel.from_pretrained(base(case), str(folder / "again"))).eval()
        assert torch.equal(logits(again), expected), f"{case}: PEFT's adapter, saved by us"

        # Weights of ours: what PEFT computes must be what the plain model computes with them.
        plain = base(case)
        plain.load_state_dict(load_file(folder / "ours_weights.safetensors"), strict=True)
        ours = quiet(lambda: PeftModel.from_pretrained(base(case), str(folder / "ours"))).eval()
        difference = (logits(ours) - logits(plain)).abs().max().item()
        assert difference <= 1e-5, f"{case}: our adapter in PEFT is {difference} off"
        assert (logits(plain) - expected).abs().max() > 1e-3, f"{case}: our weights are not PEFT's"
        facts = json.loads((folder / "facts.json").read_text())
        if case != "container":
            targeted = sorted(ours.base_model.targeted_module_names)
            assert targeted == facts["targeted"], f"{case}: {targeted}"
        trainer = quiet(lambda: PeftModel.from_pretrained(base(case), str(folder / "ours"), is_trainable=True))
        assert trainer.get_nb_trainable_parameters() == (facts["trainable"], facts["total"]), case
        print(case, "ok")


{"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
