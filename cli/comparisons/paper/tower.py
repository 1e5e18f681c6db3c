"""The picture tower: a small vision transformer of CLIP's architecture, trained to name the pictures of scenes. Each
picture is a patch, so that a scene takes four tokens of the language model."""

import time

import torch
from torch.nn.functional import cross_entropy
from transformers import CLIPVisionConfig, CLIPVisionModel

import pictures
import scenes

MEAN, STD = 0.25, 0.33
CONFIG = dict(
    hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=scenes.SIZE,
    patch_size=pictures.SIZE, hidden_act="gelu", projection_dim=128,
)
PATCHES = len(scenes.PLACES)
CLOTHES, BATCH = 20_000, 64


def pixels(some):
    """[scenes, 3, SIZE, SIZE], as a processor of transformers makes them."""
    grey = torch.stack([torch.from_numpy(scene.image) for scene in some]).float() / 255
    return ((grey - MEAN) / STD)[:, None].expand(-1, 3, -1, -1).contiguous()


def seen(tower, images):
    """[scenes, 4, width]: what Llava takes of the tower, before its last norm and without the token of its class."""
    return tower(images, output_hidden_states=True).hidden_states[-1][:, 1:]


def named(tower, head, some):
    """[scenes, 4, kinds]: logits of the four places."""
    return head(seen(tower, pixels(some)))


def accuracy(tower, head, some):
    with torch.no_grad():
        found = torch.cat([named(tower, head, some[at : at + 256]).argmax(-1) for at in range(0, len(some), 256)])
    right = found == torch.tensor([scene.kinds for scene in some])
    clothes = torch.tensor([scene.kinds for scene in some]) < len(pictures.CLOTHES)
    return float(right.float().mean()), float(right[clothes].float().mean())


def train(steps):
    """(the tower, accuracy on held-out pictures, that on clothes)."""
    torch.manual_seed(0)
    begun = time.perf_counter()
    tower = CLIPVisionModel(CLIPVisionConfig(**CONFIG))
    head = torch.nn.Linear(CONFIG["hidden_size"], len(pictures.NAMES))
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=1.5e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, steps, pct_start=0.1)
    made = scenes.make("train", CLOTHES, steps * BATCH, seed="tower")
    for step in range(steps):
        some = made[step * BATCH : (step + 1) * BATCH]
        wanted = torch.tensor([scene.kinds for scene in some])
        loss = cross_entropy(named(tower, head, some).flatten(0, 1), wanted.flatten())
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    right, clothes = accuracy(tower, head, scenes.make("t10k", 10_000, 1000, seed="tower"))
    seconds = time.perf_counter() - begun
    print(f"tower: {right:.1%} of held-out pictures are named, {clothes:.1%} of the clothes, {seconds:.0f} s")
    return tower, right, clothes
