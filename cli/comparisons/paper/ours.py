"""LayerNorm tuning by `ln-tuning train`, on the files of the same rows."""

import json
import math
import shutil
import subprocess
import sys
import time

import torch
from peft import PeftModel
from PIL import Image
from safetensors import safe_open

import memory
from training import BATCH, CLIP, WARMUP, Cost

# Of norms before attention and MLPs, and of the final one; the default is that of the connector.
RATES = "{{default: {other}, pre: {norms}, final: {norms}}}"


def write(rows, directory):
    """train.jsonl, with each scene as a picture beside it, and nothing else: not the run of an earlier comparison."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with open(directory / "train.jsonl", "w") as file:
        for place, row in enumerate(rows):
            Image.fromarray(row.scene.image).save(directory / f"{place}.png")
            messages = []
            for turn, (question, answer) in enumerate(row.turns):
                content = [{"type": "image"}] if turn == 0 else []
                messages.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
                messages.append({"role": "assistant", "content": answer})
            file.write(json.dumps({"messages": messages, "images": [f"{place}.png"]}) + "\n")


def settings(base, out, rows, norms, connector):
    steps = math.ceil(len(rows) / BATCH)
    return f"""
model: {base}
out: {out}
device: cpu
kind: bf16
threads: {torch.get_num_threads()}
recipe: layernorm-simple
adapter: {{modules_to_save: {"[multi_modal_projector]" if connector else "null"}}}
data: {{train: {out / "train.jsonl"}, shuffle: false, packing: false}}
optimizer: {{lr: {norms if connector is None else RATES.format(other=connector, norms=norms)}, weight_decay: 0}}
schedule: {{name: cosine, warmup_steps: {math.ceil(WARMUP * steps)}}}
clip_norm: {CLIP}
batch_size: {BATCH}
resume: never
"""


def train(binary, base, model, rows, norms, connector, out):
    """Puts what `ln-tuning` trained into `model`, through PEFT; `connector` is its rate, or None. Gives the cost: the
    time and the most memory of the whole process."""
    write(rows, out)
    (out / "train.yaml").write_text(settings(base, out, rows, norms, connector))
    begun = time.perf_counter()
    process = subprocess.Popen([binary, "train", out / "train.yaml"], stdout=subprocess.DEVNULL)
    most = memory.of_all(process)
    if process.returncode != 0:
        sys.exit(f"error: {binary} train {out / 'train.yaml'} failed; its message stands above")
    seconds = time.perf_counter() - begun
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    with safe_open(out / "adapter" / "adapter_model.safetensors", "pt") as file:
        weights = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    PeftModel.from_pretrained(model, out / "adapter")
    losses = [line["loss"] for line in lines if "loss" in line]
    return Cost(losses, weights, seconds, most)
