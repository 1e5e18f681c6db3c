"""`vit.py DIR [--checkpoints]`: tiny random ViTs of transformers with their logits and the gradients of all weights, or alone."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import ViTConfig, ViTForImageClassification, ViTModel

torch.set_num_threads(1)
CASES = {
    "plain": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48),
    "no_bias": dict(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, qkv_bias=False,
        hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-3,
    ),
    "relu": dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, hidden_act="relu"),
}

for case, arguments in CASES.items():
    folder = Path(sys.argv[1]) / case
    torch.manual_seed(len(case))
    config = ViTConfig(
        image_size=12, patch_size=3, num_channels=2, num_labels=5, attn_implementation="eager", **arguments
    )
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.2)
    model.save_pretrained(folder)
    if "--checkpoints" in sys.argv:
        continue
    images = torch.randn(3, 2, 12, 12)
    logits = model(pixel_values=images).logits
    logits.square().sum().backward()
    reference = {"grad." + name: tensor.grad for name, tensor in model.named_parameters()}
    save_file(reference | {"images": images, "logits": logits.detach()}, folder / "reference.st")
    if case == "plain":
        base = ViTModel(config, add_pooling_layer=True)
        base.load_state_dict(model.vit.state_dict(), strict=False)
        base.save_pretrained(Path(sys.argv[1]) / "plain-base")
