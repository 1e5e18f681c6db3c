"""The Python half of tests/project/quickstart.rs. Every warning is an error.

`make RUN WORK` loads base and adapter of the quickstart with transformers and PEFT, and compares the logits with ours
in WORK/ours.safetensors; then makes an adapter of its own in WORK/peft. `again RUN WORK` loads WORK/again, which is
that adapter, loaded and saved by us.
"""

import logging
import sys
import warnings
from pathlib import Path

import torch
from peft import LNTuningConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification

torch.set_num_threads(1)
run, work = map(Path, sys.argv[2:])
ours = load_file(work / "ours.safetensors")


class Refuse(logging.Handler):
    def emit(self, record):
        sys.exit(f"transformers or PEFT warned: {record.getMessage()}")


for name in ("transformers", "peft"):
    logging.getLogger(name).addHandler(Refuse(logging.WARNING))


def base():
    model, report = ViTForImageClassification.from_pretrained(str(run / "base"), output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(pixel_values=ours["images"]).logits


def compare(model, expected, what):
    difference = (logits(model) - expected).abs().max().item()
    assert difference <= 1e-5, f"{what}: the logits are {difference} off"


def make():
    compare(base(), ours["base"], "the base")
    tuned = PeftModel.from_pretrained(base(), str(run / "adapter")).eval()
    compare(tuned, ours["ours"], "our adapter")
    compare(tuned.merge_and_unload(), ours["ours"], "our adapter merged by PEFT")

    config = LNTuningConfig(target_modules=["layernorm_before", "layernorm"], modules_to_save=["classifier"])
    own = get_peft_model(base(), config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in own.parameters():
            if tensor.requires_grad:
                tensor.add_(torch.randn_like(tensor) * 0.3)
    own.save_pretrained(str(work / "peft"))
    save_file({"logits": logits(own)}, work / "python.safetensors")


def again():
    expected = load_file(work / "python.safetensors")["logits"]
    compare(PeftModel.from_pretrained(base(), str(work / "again")).eval(), expected, "PEFT's adapter, saved by us")


with warnings.catch_warnings():
    warnings.simplefilter("error")
    # PEFT gives the first for every LayerNorm, its own adapters included; transformers gives the second to PEFT.
    warnings.filterwarnings("ignore", message="Unsupported layer type")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    {"make": make, "again": again}[sys.argv[1]]()
