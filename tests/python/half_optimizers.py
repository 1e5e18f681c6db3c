"""Weights in f16 and bf16 after torch.optim, with f32 arithmetic as the truth beside: for tests/training/half_precision.rs.

Reads <folder>/problem.safetensors: `start` and a gradient per step, `gradients`. Writes a file per case."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
folder = Path(sys.argv[1])
data = load_file(folder / "problem.safetensors")
for kind, dtype in [("Half", torch.float16), ("BFloat16", torch.bfloat16)]:
    for algorithm, build in [
        ("adamw", lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.01, foreach=False)),
        ("sgd", lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, foreach=False)),
    ]:
        for lr in [1e-2, 1e-4, 1e-5, 1e-6]:
            result = {}
            for name, held in [("torch", dtype), ("exact", torch.float64)]:
                weight = data["start"].to(dtype).to(held).requires_grad_()
                optimizer = build([weight], lr)
                for gradient in data["gradients"]:
                    weight.grad = gradient.to(dtype).to(held)
                    optimizer.step()
                result[name] = weight.detach().to(torch.float64)
            save_file(result, folder / f"{kind}-{algorithm}-{lr:g}.safetensors")
