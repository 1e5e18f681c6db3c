"""`nesting.py DIR`: a tiny random LLaVA of transformers, and what its language model and its vision tower compute, each
by itself, with the gradients of all their parameters."""

import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.manual_seed(0)
root = Path(sys.argv[1])
text = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
)
vision = CLIPVisionConfig(
    hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, image_size=16, patch_size=4,
)
config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=63)
model = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
with torch.no_grad():
    for tensor in model.parameters():
        tensor.add_(torch.randn_like(tensor) * 0.2)
model.save_pretrained(root)

ids, images = torch.randint(1, 60, (2, 9)), torch.randn(2, 3, 16, 16)
words = model.model.language_model(input_ids=ids).last_hidden_state
patches = model.model.vision_tower(pixel_values=images).last_hidden_state
(words.square().mean() + patches.square().mean()).backward()
reference = {"ids": ids, "images": images, "words": words.detach(), "patches": patches.detach()}
# The projector, the head and the tower's last norm have no part in it.
for name, tensor in model.named_parameters():
    if tensor.grad is not None:
        reference[f"grad.{name}"] = tensor.grad
save_file({name: tensor.contiguous() for name, tensor in reference.items()}, root / "reference.st")
