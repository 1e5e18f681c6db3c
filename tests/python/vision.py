"""`vision.py DIR [--checkpoints]`: tiny random DINOv2s and CLIPs of transformers, what they compute, and all gradients; or
the directories alone."""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForImageClassification

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
SMALL = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=16, patch_size=4)
TOWER = dict(SMALL, intermediate_size=40)
TEXT = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50, max_position_embeddings=12)
DINOV2 = {
    "dinov2": (AutoModel, {}),
    "dinov2_swiglu": (AutoModel, dict(use_swiglu_ffn=True, qkv_bias=False, use_mask_token=False)),
    "dinov2_classifier": (AutoModelForImageClassification, dict(num_labels=5, mlp_ratio=3, hidden_act="relu")),
}
CLIP = {
    "clip": dict(eos_token_id=49),
    "clip_first": dict(eos_token_id=2, hidden_act="gelu"),
    "clip_old": dict(eos_token_id=49),
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


root = Path(sys.argv[1])
for case, (auto, options) in DINOV2.items():
    torch.manual_seed(len(case))
    config = CONFIG_MAPPING["dinov2"](**SMALL, **options)
    model = shaken(auto.from_config(config, attn_implementation="eager"))
    model.save_pretrained(root / case)
    if "--checkpoints" in sys.argv:
        continue
    reference = {}
    # Another size than the configuration's, and not a square.
    for size, shape in (("same", (3, 3, 16, 16)), ("other", (3, 3, 12, 24))):
        images = torch.randn(shape)
        result = model(pixel_values=images)
        output = result.logits if hasattr(result, "logits") else result.last_hidden_state
        reference |= {f"{size}.images": images, f"{size}.output": output.detach().clone()}
        reference |= gradients(model, output, size)
    save_file({name: tensor.contiguous() for name, tensor in reference.items()}, root / case / "reference.st")

for case, options in CLIP.items():
    torch.manual_seed(len(case))
    act = dict(hidden_act=options.get("hidden_act", "quick_gelu"))
    config = CONFIG_MAPPING["clip"](
        text_config=dict(TEXT, eos_token_id=options["eos_token_id"], **act), vision_config=dict(TOWER, **act), projection_dim=20,
    )
    model = shaken(AutoModel.from_config(config, attn_implementation="eager"))
    model.save_pretrained(root / case)
    if case == "clip_old":
        # Positions among the weights, and a second configuration of a tower: what that does not say is the default.
        path = root / case / "model.safetensors"
        positions = {"text_model.embeddings.position_ids": torch.arange(12)[None]}
        save_file(load_file(path) | positions, path, metadata={"format": "pt"})
        path = root / case / "config.json"
        fields = json.loads(path.read_text())
        fields |= dict(text_config_dict=dict(TEXT, eos_token_id=49), vision_config_dict=None)
        fields["text_config"] |= dict(hidden_act="gelu", layer_norm_eps=0.5, eos_token_id=2)
        path.write_text(json.dumps(fields))
        model = AutoModel.from_pretrained(root / case, attn_implementation="eager").eval()
        read = model.config.text_config
        assert (read.hidden_act, read.layer_norm_eps, read.eos_token_id) == ("quick_gelu", 1e-5, 49)
    if "--checkpoints" in sys.argv:
        continue
    ids = torch.randint(3, 48, (4, 11))
    images = torch.randn(3, 3, 16, 16)
    reference = {"images": images}
    for side in ("right", "left", "none"):
        mask = torch.ones_like(ids)
        given = ids.clone()
        for row, length in enumerate((11, 8, 5, 3)):
            start, end = (0, length) if side == "right" else (11 - length, 11) if side == "left" else (0, 11)
            mask[row, :start], mask[row, end:] = 0, 0
            given[row, end - 1] = 49
            given[row, :start], given[row, end:] = 1, 1
        result = model(
            input_ids=given, pixel_values=images, attention_mask=None if side == "none" else mask, return_dict=True
        )
        reference |= {
            f"{side}.ids": given, f"{side}.mask": mask, f"{side}.logits": result.logits_per_image.detach().clone(),
            f"{side}.text_hidden": (result.text_model_output.last_hidden_state * mask[..., None]).detach().clone(),
            f"{side}.image_hidden": result.vision_model_output.last_hidden_state.detach().clone(),
        }
        reference |= gradients(model, result.logits_per_image, side)
    save_file({name: tensor.contiguous() for name, tensor in reference.items()}, root / case / "reference.st")
