"""One run of training: AdamW on f32 masters, a cosine schedule after a warm-up, clipping at 1."""

import dataclasses
import math
import time

import torch
import transformers
from torch.nn.functional import cross_entropy

import memory
import scores

BATCH, WARMUP, CLIP = 8, 0.03, 1.0


@dataclasses.dataclass
class Group:
    parameters: list
    rate: float


@dataclasses.dataclass
class Cost:
    losses: list  # of each step, before its update
    weights: int  # that were trained
    seconds: float
    memory: float  # GB, the model included


def train(model, groups, rows):
    """Trains the groups' parameters on all rows once, in their order; each has an f32 master."""
    model.requires_grad_(False)
    before = memory.begin()
    pairs, places = [], []
    for group in groups:
        masters = [parameter.detach().float().clone() for parameter in group.parameters]
        pairs += list(zip(group.parameters, masters))
        places.append({"params": masters, "lr": group.rate})
    for parameter, _ in pairs:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(places, weight_decay=0.0, fused=True)
    steps = math.ceil(len(rows) / BATCH)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, math.ceil(WARMUP * steps), steps)
    losses, begun = [], time.perf_counter()
    for step in range(steps):
        logits, labels, _ = scores.logits(model, rows[step * BATCH : (step + 1) * BATCH])
        loss = cross_entropy(logits, labels)
        loss.backward()
        losses.append(float(loss))
        for parameter, master in pairs:
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_([master for _, master in pairs], CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for parameter, master in pairs:
                parameter.copy_(master)
    model.requires_grad_(False)
    weights = sum(master.numel() for _, master in pairs)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e9
    taken = memory.taken(before)
    return Cost(losses, weights, time.perf_counter() - begun, None if taken is None else size + taken)
