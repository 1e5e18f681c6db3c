"""Tuning by `ln-tuning train` and by PEFT with the same rows, batches, schedule and optimiser."""

import dataclasses
import json
import subprocess
import time
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LNTuningConfig, LoraConfig, get_peft_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@dataclasses.dataclass
class Settings:
    """Those of AdamW with a cosine schedule."""

    lr: float
    steps: int
    batch: int
    interval: int  # steps between evaluations
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    max_length: int = 256


@dataclasses.dataclass
class Result:
    losses: list  # of each step, before its update
    curve: list  # (step, evaluation loss)
    moved: int  # weights that are not what they were
    weights: int  # that were trained
    seconds: float  # evaluations included

    @property
    def last(self):
        return self.curve[-1][1]


def ours(binary, model, norms, kind, data, out, settings):
    """`ln-tuning train`, with train.jsonl and eval.jsonl of `data`; `norms` gives the base's weights by name."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "train.yaml").write_text(f"""
model: {model}
out: {out}
device: cpu
kind: {kind}
threads: {torch.get_num_threads()}
data:
  train: {data / "train.jsonl"}
  eval: {data / "eval.jsonl"}
  shuffle: false
  packing: false
  max_length: {settings.max_length}
optimizer: {{lr: {settings.lr}, weight_decay: {settings.weight_decay}}}
schedule: {{name: cosine, warmup_steps: {settings.warmup}, warmup_ratio: 0}}
clip_norm: {settings.clip}
batch_size: {settings.batch}
max_steps: {settings.steps}
eval_interval: {settings.interval}
save_interval: {settings.steps}
resume: never
""")
    (out / "metrics.jsonl").unlink(missing_ok=True)
    start = time.perf_counter()
    subprocess.run([binary, "train", out / "train.yaml"], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    curve = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
    moved = weights = 0
    for key, value in load_file(out / "adapter" / "adapter_model.safetensors").items():
        name = key.removeprefix("base_model.model.").replace(".ln_tuning_layers", "")
        moved += int((value != norms[name].float()).sum())
        weights += value.numel()
    return Result(losses, curve, moved, weights, seconds)


def peft(model, method, train, evaluation, settings):
    """PEFT's LN tuning or LoRA (rank 8 of q and v). An f32 model computes in bf16 where torch's autocast does so."""
    torch.manual_seed(0)
    if method == "lora":
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    else:
        config = LNTuningConfig(task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, settings.warmup, settings.steps)
    losses, curve, start = [], [], time.perf_counter()
    for step in range(1, settings.steps + 1):
        first = (step - 1) * settings.batch % len(train)
        with autocast(model):
            loss = model(**padded(train[first : first + settings.batch])).loss
        loss.backward()
        losses.append(float(loss))
        torch.nn.utils.clip_grad_norm_(trained, settings.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % settings.interval == 0 or step == settings.steps:
            curve.append((step, evaluate(model, evaluation, settings.batch)))
    moved = sum(int((a != b).sum()) for a, b in zip(before, trained))
    weights = sum(parameter.numel() for parameter in trained)
    return Result(losses, curve, moved, weights, time.perf_counter() - start)


def autocast(model):
    f32 = next(model.parameters()).dtype == torch.float32
    return torch.autocast("cpu", torch.bfloat16, enabled=f32)


def padded(rows):
    """A batch of rows, which are (tokens, number of the first ones that are not learned)."""
    longest = max(len(tokens) for tokens, _ in rows)
    fill = lambda tokens, value: tokens + [value] * (longest - len(tokens))  # noqa: E731
    return {
        "input_ids": torch.tensor([fill(tokens, 0) for tokens, _ in rows]),
        "labels": torch.tensor([fill([-100] * first + tokens[first:], -100) for tokens, first in rows]),
        "attention_mask": torch.tensor([fill([1] * len(tokens), 0) for tokens, _ in rows]),
    }


def evaluate(model, rows, size):
    """The mean loss of the learned tokens."""
    total = count = 0
    model.eval()
    with torch.no_grad(), autocast(model):
        for start in range(0, len(rows), size):
            given = padded(rows[start : start + size])
            labels = given.pop("labels")[:, 1:]
            logits = model(**given).logits[:, :-1][labels != -100].float()
            total += float(cross_entropy(logits, labels[labels != -100], reduction="sum"))
            count += len(logits)
    model.train()
    return total / count


COLOURS = ["#c83c32", "#466eb4", "#3c8c50", "#b4823c"]


def draw(path, title, curves):
    """Loss over steps; `curves` by name."""
    points = [point for curve in curves.values() for point in curve]
    last = max(step for step, _ in points)
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    low, high = low - (high - low) * 0.1, high + (high - low) * 0.1 + 1e-6
    x = lambda step: 80 + 560 * step / last  # noqa: E731
    y = lambda loss: 290 - 240 * (loss - low) / (high - low)  # noqa: E731
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="700" height="350" font-family="sans-serif" font-size="13">',
        '<rect width="700" height="350" fill="white"/>',
        f'<text x="80" y="28" font-size="16">{title}</text>',
        '<path d="M80 50 V290 H640" fill="none" stroke="black"/>',
    ]
    for i in range(5):
        loss, step = low + (high - low) * i / 4, last * i / 4
        parts.append(f'<text x="72" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.3f}</text>')
        parts.append(f'<text x="{x(step):.1f}" y="310" text-anchor="middle">{step:.0f}</text>')
    parts.append('<text x="360" y="335" text-anchor="middle">step</text>')
    for place, ((name, curve), colour) in enumerate(zip(curves.items(), COLOURS)):
        line = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(f'<text x="636" y="{62 + 18 * place}" text-anchor="end" fill="{colour}">{name}</text>')
    path.write_text("\n".join([*parts, "</svg>", ""]))
