"""The Python half of tests/project/quickstart.rs. Every warning is an error.

`make RUN WORK` loads base and adapter of the quickstart with transformers and PEFT, and compares the logits with ours
in WORK/ours.safetensors; then makes an adapter of its own in WORK/peft. `again RUN WORK` loads WORK/again, which is
that adapter, loaded and saved by us. `processor RUN WORK` reads the digits as a user does, from PNG files through
transformers' image processor, and compares the accuracies with those of the report.
"""

import csv
import gzip
import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from peft import LNTuningConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, ViTForImageClassification

torch.set_num_threads(1)
run, work = map(Path, sys.argv[2:])


class Refuse(logging.Handler):
    def emit(self, record):
        sys.exit(f"transformers or PEFT warned: {record.getMessage()}")


for name in ("transformers", "peft"):
    logging.getLogger(name).addHandler(Refuse(logging.WARNING))


def base():
    model, report = ViTForImageClassification.from_pretrained(str(run / "base"), output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def logits(model, pixels):
    with torch.no_grad():
        return model(pixel_values=pixels).logits


def compare(model, pixels, expected, what):
    difference = (logits(model, pixels) - expected).abs().max().item()
    assert difference <= 1e-5, f"{what}: the logits are {difference} off"


def make():
    ours = load_file(work / "ours.safetensors")
    pixels = ours["images"]
    compare(base(), pixels, ours["base"], "the base")
    tuned = PeftModel.from_pretrained(base(), str(run / "adapter")).eval()
    compare(tuned, pixels, ours["ours"], "our adapter")
    compare(tuned.merge_and_unload(), pixels, ours["ours"], "our adapter merged by PEFT")

    config = LNTuningConfig(target_modules=["layernorm_before", "layernorm"], modules_to_save=["classifier"])
    own = get_peft_model(base(), config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in own.parameters():
            if tensor.requires_grad:
                tensor.add_(torch.randn_like(tensor) * 0.3)
    own.save_pretrained(str(work / "peft"))
    save_file({"logits": logits(own, pixels)}, work / "python.safetensors")


def again():
    pixels = load_file(work / "ours.safetensors")["images"]
    expected = load_file(work / "python.safetensors")["logits"]
    tuned = PeftModel.from_pretrained(base(), str(work / "again")).eval()
    compare(tuned, pixels, expected, "PEFT's adapter, saved by us")


def digits():
    """Grey levels and digits of the test set: every fifth line."""
    with gzip.open(Path(__file__).parents[2] / "examples/data/digits.csv.gz", "rt") as file:
        table = np.array(list(csv.reader(file)), dtype=float).astype(np.uint8)[4::5]
    return table[:, :64].reshape(-1, 8, 8), torch.tensor(table[:, 64])


def through_png(levels, place):
    Image.fromarray(levels).save(place)
    return Image.open(place)


def processor():
    report = json.loads((run / "report.json").read_text())
    prepare = AutoImageProcessor.from_pretrained(str(run / "base"))
    levels, expected = digits()

    def check(model, levels, accuracy):
        arrays = prepare(list(levels[:, None]), return_tensors="pt").pixel_values
        assert torch.equal(arrays, torch.tensor(levels[:, None] / 8 - 1).float()), "other pixels than in training"
        files = [through_png(image, work / f"{index}.png") for index, image in enumerate(levels)]
        pixels = prepare(files, return_tensors="pt").pixel_values
        assert torch.equal(pixels, arrays), "a PNG file gives other pixels than its array"
        found = (logits(model, pixels).argmax(-1) == expected).double().mean().item()
        assert abs(found - accuracy) < 1e-9, f"accuracy {found}, the report says {accuracy}"

    check(base(), levels, report["source_accuracy"])
    turned = np.rot90(16 - levels, axes=(1, 2)).copy()
    check(base(), turned, report["target_accuracy_before"])
    tuned = PeftModel.from_pretrained(base(), str(run / "adapter")).eval()
    check(tuned, turned, report["target_accuracy_after"])


with warnings.catch_warnings():
    warnings.simplefilter("error")
    # PEFT gives the first for every LayerNorm, its own adapters included; transformers gives the second to PEFT.
    warnings.filterwarnings("ignore", message="Unsupported layer type")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    {"make": make, "again": again, "processor": processor}[sys.argv[1]]()
