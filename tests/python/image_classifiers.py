"""`image_classifiers.py make DIR`: tiny random models of images with their processors, a folder each, and real pictures in
`DIR/pictures`, a folder for each class.
`image_classifiers.py losses DIR ADAPTERS`: the mean loss on these pictures of each model with the adapter in
`ADAPTERS/NAME/adapter`, loaded by PEFT, and the names of the trained tensors.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import PeftModel
from PIL import Image
from sklearn.datasets import load_digits
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from transformers.image_utils import load_image

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
TOWER = dict(image_size=24, patch_size=8, initializer_range=0.2)
TEXT = dict(**SHAPE, intermediate_size=64, vocab_size=99, max_position_embeddings=8, bos_token_id=1, eos_token_id=2)
TWO = dict(text_config=TEXT, vision_config=dict(**SHAPE, **TOWER, intermediate_size=64))


def make(directory):
    torch.manual_seed(0)
    for name, model, processor in [
        ("clip", CLIPModel(CLIPConfig(**TWO)), CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)),
        ("siglip", SiglipModel(SiglipConfig(**TWO)), SiglipImageProcessorPil(size={"height": 24, "width": 24})),
        # It sees other sizes than it was trained at.
        (
            "dinov2", Dinov2Model(Dinov2Config(**SHAPE, mlp_ratio=2, image_size=40, patch_size=8, initializer_range=0.2)),
            BitImageProcessorPil(size={"shortest_edge": 28}, crop_size=24, image_mean=[0.485, 0.456, 0.406]),
        ),
        (
            "vit", ViTForImageClassification(ViTConfig(**SHAPE, **TOWER, intermediate_size=64)),
            ViTImageProcessorPil(size={"height": 24, "width": 24}),
        ),
    ]:
        with torch.no_grad():
            for key, tensor in model.named_parameters():
                if "norm" in key:
                    tensor.add_(torch.randn_like(tensor) * 0.3)
        model.save_pretrained(directory / name)
        processor.save_pretrained(directory / name)
    digits = load_digits()
    for place, (digit, label) in enumerate(zip(digits.images, digits.target)):
        if label in (3, 7) and place < 150:
            folder = directory / "pictures" / "three seven".split()[int(label == 7)]
            folder.mkdir(parents=True, exist_ok=True)
            size = (20 + place % 9, 24 + place % 7)
            grey = Image.fromarray((digit * 15).astype(np.uint8)).resize(size)
            Image.merge("RGB", (grey, grey.point(lambda x: 255 - x), grey)).save(folder / f"{place}.png")


def losses(directory, adapters):
    found = {}
    for adapter in sorted(adapters.glob("*/adapter")):
        base = directory / adapter.parent.name
        labels = json.loads((adapter / "config.json").read_text())["label2id"]
        model = AutoModelForImageClassification.from_pretrained(base, num_labels=len(labels), ignore_mismatched_sizes=True)
        model = PeftModel.from_pretrained(model, adapter).eval()
        processor = AutoImageProcessor.from_pretrained(base)
        losses = []
        for path in sorted((directory / "pictures").glob("*/*")):
            pixels = processor(load_image(str(path)), return_tensors="pt").pixel_values
            with torch.no_grad():
                logits = model(pixels).logits
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([labels[path.parent.name]])).item())
        trained = [name for name, _ in model.named_parameters() if "ln_tuning_layers" in name or "modules_to_save" in name]
        found[base.name] = dict(loss=sum(losses) / len(losses), trained=trained)
    print(json.dumps(found))


if sys.argv[1] == "make":
    make(Path(sys.argv[2]))
else:
    losses(Path(sys.argv[2]), Path(sys.argv[3]))
