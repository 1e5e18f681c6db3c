"""The Python half of tests/quickstart.rs: `quickstart.py RUN WORK`.

Loads base and adapter of the quickstart with transformers and PEFT, every warning an error, and compares the logits
with ours in WORK/ours.safetensors; then makes an adapter of its own in WORK/peft.
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
run, work = map(Path, sys.argv[1:])
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


with warnings.catch_warnings():
    warnings.simplefilter("error")
    # PEFT gives it for every LayerNorm, its own adapters included; transformers gives it to PEFT.
    warnings.filterwarnings("ignore", message="Unsupported layer type")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    difference = (logits(base()) - ours["base"]).abs().max().item()
    assert difference <= 1e-5, f"the base is {difference} off"
    tuned = PeftModel.from_pretrained(base(), str(run / "adapter")).eval()
    difference = (logits(tuned) - ours["ours"]).abs().max().item()
    assert difference <= 1e-5, f"our adapter in PEFT is {difference} off"
    merged = tuned.merge_and_unload()
    difference = (logits(merged) - ours["ours"]).abs().max().item()
    assert difference <= 1e-5, f"our adapter merged by PEFT is {difference} off"

    config = LNTuningConfig(target_modules=["layernorm_before", "layernorm"], modules_to_save=["classifier"])
    own = get_peft_model(base(), config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in own.parameters():
            if tensor.requires_grad:
                tensor.add_(torch.randn_like(tensor) * 0.3)
    own.save_pretrained(str(work / "peft"))
    save_file({"logits": logits(own)}, work / "python.safetensors")
