"""The results of torch.optim on the problem in tests/training/optimizer.rs: one file of final weights per case."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
CASES = {
    "adamw": (lambda p: torch.optim.AdamW(p, lr=1e-2), None),
    "adamw_decay": (lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-6), None),
    "adamw_amsgrad": (lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True), None),
    "adamw_clipped": (lambda p: torch.optim.AdamW(p, lr=1e-2), lambda p: torch.nn.utils.clip_grad_norm_(p, 0.5)),
    "adamw_clamped": (lambda p: torch.optim.AdamW(p, lr=1e-2), lambda p: torch.nn.utils.clip_grad_value_(p, 0.1)),
    "sgd": (lambda p: torch.optim.SGD(p, lr=1e-3), None),
    "sgd_momentum": (lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, dampening=0.1, weight_decay=0.1), None),
    "sgd_nesterov": (lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True), None),
}

folder = Path(sys.argv[1])
data = load_file(folder / "problem.safetensors")
for case, (build, clip) in CASES.items():
    weight = data["norm.weight"].clone().requires_grad_()
    bias = data["norm.bias"].clone().requires_grad_()
    rare = data["rare_norm.weight"].clone().requires_grad_()
    optimizer = build([weight, bias, rare])
    for step in range(100):
        optimizer.zero_grad()
        loss = ((data["x"] * weight + bias - data["y"]) ** 2).mean()
        if step % 3 == 1:  # without a gradient in the other steps
            loss = loss + (rare**2 * data["z"]).sum()
        loss.backward()
        if clip:
            clip([p for p in (weight, bias, rare) if p.grad is not None])
        optimizer.step()
    save_file(
        {"norm.weight": weight.detach(), "norm.bias": bias.detach(), "rare_norm.weight": rare.detach()},
        folder / f"{case}.safetensors",
    )
