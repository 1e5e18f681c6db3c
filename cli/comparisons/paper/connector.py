"""The connector's first stage, the same for all methods: near the embeddings of names, then captions."""

import torch
import transformers

import pictures
import scenes
import tower
from training import Group, train

RATE, ALIGNING_RATE, STEPS, BATCH = 1e-3, 2e-3, 400, 64


def names(model, tokenizer):
    """The mean embedding of each name's tokens."""
    table = model.model.language_model.embed_tokens.weight.detach().float()
    return torch.stack([table[tokenizer(" " + name)["input_ids"]].mean(0) for name in pictures.NAMES])


def align(model, tokenizer):
    """Brings what the connector makes of a picture near the embedding of its name. CLIP's own tower is trained with
    texts; this one knows kinds alone, so that this step stands in for that training."""
    connector, wanted = model.model.multi_modal_projector.float(), names(model, tokenizer)
    made = scenes.make("train", tower.CLOTHES, 100 * BATCH, "align")
    kinds = torch.tensor([scene.kinds for scene in made])
    with torch.no_grad():
        parts = [tower.pixels(made[at : at + 256]).bfloat16() for at in range(0, len(made), 256)]
        seen = torch.cat([tower.seen(model.model.vision_tower, part).float() for part in parts])
    connector.requires_grad_(True)
    optimizer = torch.optim.AdamW(connector.parameters(), lr=ALIGNING_RATE, weight_decay=0.0)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 10, STEPS)
    for step in range(STEPS):
        some = torch.arange(step * BATCH, (step + 1) * BATCH) % len(made)
        (connector(seen[some]) - wanted[kinds[some]]).square().mean().div(wanted.var()).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    connector.requires_grad_(False).bfloat16()


def teach(model, tokenizer, captions):
    """Both parts; gives the cost of the second."""
    torch.manual_seed(0)
    align(model, tokenizer)
    return train(model, [Group(list(model.model.multi_modal_projector.parameters()), RATE)], captions)
