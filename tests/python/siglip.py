"""`siglip.py DIR`: tiny random SigLIPs of transformers, and towers of CLIP and SigLIP as classifiers, with what they compute
and all gradients."""

import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
TOWER = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=16, patch_size=4, intermediate_size=40)
TEXT = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50, max_position_embeddings=12)
SIGLIP_TEXT = dict(TEXT, projection_size=24)
# name -> (class, configuration, module that former versions put in front of the names)
CASES = {
    "siglip": ("SiglipModel", dict(text_config=SIGLIP_TEXT, vision_config=TOWER), ""),
    "siglip_small_head": (
        "SiglipModel",
        dict(
            text_config=dict(TEXT, hidden_size=24, num_attention_heads=4, hidden_act="gelu", layer_norm_eps=1e-3),
            vision_config=dict(TOWER, hidden_act="gelu", layer_norm_eps=1e-3, num_channels=2, patch_size=8),
        ),
        "",
    ),
    "siglip_vision": ("SiglipVisionModel", TOWER, ""),
    "siglip_vision_old": ("SiglipVisionModel", TOWER, "vision_model."),
    "siglip_vision_headless": ("SiglipVisionModel", dict(TOWER, vision_use_head=False), ""),
    "clip_vision": ("CLIPVisionModel", TOWER, ""),
    "clip_vision_old": ("CLIPVisionModel", TOWER, "vision_model."),
    "clip": ("CLIPModel", dict(text_config=TEXT, vision_config=TOWER, projection_dim=20), ""),
    "siglip_images": ("SiglipForImageClassification", dict(text_config=SIGLIP_TEXT, vision_config=TOWER, num_labels=5), ""),
    "clip_images": ("CLIPForImageClassification", dict(text_config=TEXT, vision_config=TOWER, num_labels=5), ""),
}


def shaken(model):
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.3)
    return model.eval()


def gradients(model, output, prefix):
    model.zero_grad()
    output.square().mean().backward()
    return {
        f"{prefix}.grad.{name}": torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()
        for name, tensor in model.named_parameters()
    }


def towers(model, images):
    """Both towers, texts padded on either side or not at all."""
    ids = torch.randint(3, 48, (4, 11))
    reference = {}
    for side in ("right", "left", "none"):
        mask = torch.ones_like(ids)
        for row, length in enumerate((11, 8, 5, 3)):
            start, end = (0, length) if side == "right" else (11 - length, 11) if side == "left" else (0, 11)
            mask[row, :start], mask[row, end:] = 0, 0
        result = model(input_ids=ids, pixel_values=images, attention_mask=None if side == "none" else mask)
        reference |= {
            f"{side}.ids": ids.clone(), f"{side}.mask": mask, f"{side}.output": result.logits_per_image,
            f"{side}.text_hidden": result.text_model_output.last_hidden_state,
            f"{side}.image_hidden": result.vision_model_output.last_hidden_state,
        }
        reference |= gradients(model, result.logits_per_image, side)
    return reference


root = Path(sys.argv[1])
for case, (name, options, prefix) in CASES.items():
    torch.manual_seed(len(case))
    kind = getattr(transformers, name)
    model = shaken(kind._from_config(kind.config_class(**options), attn_implementation="eager"))
    model.save_pretrained(root / case)
    path = root / case / "model.safetensors"
    tensors = load_file(path)
    if prefix:
        tensors = {f"{prefix}{key.removeprefix(prefix)}": tensor for key, tensor in tensors.items()}
    if case == "siglip":
        # As files of former versions have them.
        positions = {"text_model": 12, "vision_model": 16}
        tensors |= {f"{tower}.embeddings.position_ids": torch.arange(n)[None] for tower, n in positions.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    model = kind.from_pretrained(root / case, attn_implementation="eager").eval()
    vision = options.get("vision_config", options)
    images = torch.randn(3, vision.get("num_channels", 3), 16, 16)
    reference = {"images": images.clone()}
    if "text_config" in options and "num_labels" not in options:
        if name == "SiglipModel":
            reference |= towers(model, images)
        # The tower for images with a new classifier.
        other = getattr(transformers, name.replace("Model", "ForImageClassification"))
        model = other.from_pretrained(root / case, num_labels=3, attn_implementation="eager").eval()
        torch.nn.init.normal_(model.classifier.weight)
        reference |= {f"tuned.{key}": tensor.detach().clone() for key, tensor in model.named_parameters()}
        logits = model(pixel_values=images).logits
        reference |= {"tuned.output": logits} | gradients(model, logits, "tuned")
        # Each tower from the files of both.
        ids = torch.randint(3, 48, (4, 11))
        for part, inputs in (("Vision", dict(pixel_values=images)), ("Text", dict(input_ids=ids))):
            tower = getattr(transformers, name.replace("Model", f"{part}Model"))
            model, found = tower.from_pretrained(root / case, attn_implementation="eager", output_loading_info=True)
            assert not found["missing_keys"] and not found["mismatched_keys"], found
            hidden = model.eval()(**inputs).last_hidden_state
            reference |= {f"{part}.output": hidden, "ids": ids.clone()} | gradients(model, hidden, part)
    else:
        sizes = {"same": images}
        if name.startswith("Siglip"):
            sizes |= {"wide": torch.randn(2, 3, 12, 24), "turned": torch.randn(2, 3, 8, 32)}
        for size, images in sizes.items():
            more = {} if size == "same" else dict(interpolate_pos_encoding=True)
            result = model(pixel_values=images, **more)
            output = result.logits if "num_labels" in options else result.last_hidden_state
            reference |= {f"{size}.images": images, f"{size}.output": output} | gradients(model, output, size)
            if name == "SiglipVisionModel" and model.use_head:
                pooled = model(pixel_values=images, **more).pooler_output
                reference |= {f"{size}.pooled": pooled} | gradients(model, pooled, f"{size}.pooled")
    save_file({name: tensor.detach().contiguous() for name, tensor in reference.items()}, root / case / "reference.st")
