"""Weights, scale and skipped steps of torch's GradScaler, for tests/training/loss_scale.rs: one file per case.

Reads <folder>/problem.safetensors: `norm.weight`, `rare_norm.weight`, and `gradients`, a row per step."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
CASES = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, dampening=0.5, weight_decay=0.1),
    "clipped": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "clamped": lambda p: torch.optim.AdamW(p, lr=1e-2),
}

folder = Path(sys.argv[1])
data = load_file(folder / "problem.safetensors")
for case, build in CASES.items():
    weight = data["norm.weight"].clone().requires_grad_()
    rare = data["rare_norm.weight"].clone().requires_grad_()
    optimizer = build([weight, rare])
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0, growth_interval=3)
    scales, skipped = [], 0
    for step, gradient in enumerate(data["gradients"]):
        optimizer.zero_grad()
        loss = (weight.half() * gradient.half()).float().sum()
        if step % 4 != 1:
            loss = loss + (rare.half() * gradient[:3].half()).float().sum() / 2
        scaler.scale(loss).backward()
        before = scaler.get_scale()
        scaler.unscale_(optimizer)
        if case == "clipped":
            torch.nn.utils.clip_grad_norm_([p for p in (weight, rare) if p.grad is not None], 0.5)
        if case == "clamped":
            torch.nn.utils.clip_grad_value_([weight, rare], 0.1)
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
        scales.append(scaler.get_scale())
    state = optimizer.state[rare]
    save_file(
        {
            "norm.weight": weight.detach(),
            "rare_norm.weight": rare.detach(),
            "scales": torch.tensor(scales),
            "skipped": torch.tensor(skipped),
            "rare.step": torch.as_tensor(float(state.get("step", -1))),
        },
        folder / f"{case}.safetensors",
    )
