"""`generation.py DIR`: tiny random decoders of transformers with a `generation_config.json`, and the text that they
continue greedily as that file says, with padding on the left and without."""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
MODELS = {
    "llama": dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    ),
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=64),
}
# Left out: the whole file; empty keys are not in it.
FILES = {
    "no_file": None,
    "ends": dict(pad_token_id=0, eos_token_id="ends"),
    "penalty": dict(pad_token_id=0, eos_token_id=[62, 63], repetition_penalty=1.9),
    "reward": dict(pad_token_id=0, repetition_penalty=0.8),
    "without_ends": dict(pad_token_id=3),
}


def shake(model):
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.add_(torch.randn_like(tensor) * (0.1 if "norm" in name or "ln_" in name else 0.3))


def text(folder, ids, mask, **options):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    new = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=24, **options)
    return new[:, ids.shape[1]:].clone()


root = Path(sys.argv[1])
for number, (model_type, sizes) in enumerate(MODELS.items()):
    torch.manual_seed(4 + number)
    ids, mask = torch.randint(4, 60, (3, 7)), torch.ones(3, 7, dtype=torch.int64)
    mask[0, :2], mask[2, :5] = 0, 0
    config = CONFIG_MAPPING[model_type](**sizes, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=61)
    model = AutoModelForCausalLM.from_config(config).eval()
    shake(model)
    free = root / f"{model_type}_free"
    model.save_pretrained(free)
    rows = text(free, torch.where(mask.bool(), ids, 0), mask, eos_token_id=[], pad_token_id=0).tolist()
    # Two rows end early, at two places.
    ends = [rows[0][5], rows[1][9]]
    for name, fields in FILES.items():
        folder = root / f"{model_type}_{name}"
        # The configuration's own end is one of the two.
        config.eos_token_id = ends[0]
        model.save_pretrained(folder)
        path = folder / "generation_config.json"
        if fields is None:
            path.unlink()
        else:
            fields = {key: ends if value == "ends" else value for key, value in fields.items()}
            path.write_text(json.dumps(fields))
        reference = {"ids": ids, "mask": mask}
        padded = torch.where(mask.bool(), ids, 0)
        reference |= {"left": text(folder, padded, mask), "none": text(folder, ids, torch.ones_like(mask))}
        save_file({key: value.contiguous() for key, value in reference.items()}, folder / "reference.st")
    for path in free.iterdir():
        path.unlink()
    free.rmdir()
