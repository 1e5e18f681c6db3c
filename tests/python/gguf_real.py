"""SmolLM2-135M-Instruct (Q4_1) as transformers computes it from the GGUF file.

`gguf_real.py OUT`: token ids of a text, and their logits.
"""

import functools
import sys

import gguf
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from smollm2 import FILE

# transformers asks for these again and again, which takes seconds.
gguf.GGUFReader = functools.cache(gguf.GGUFReader)
gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
torch.set_num_threads(1)
# <|im_start|>user, "What is the capital of France?", <|im_end|>, <|im_start|>assistant, and more of no meaning.
ids = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198, *range(300, 14300, 1000)]
ids = torch.tensor([ids])
model = AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name, attn_implementation="eager").eval()
with torch.no_grad():
    save_file({"input_ids": ids, "logits": model(ids).logits.contiguous()}, sys.argv[1])
