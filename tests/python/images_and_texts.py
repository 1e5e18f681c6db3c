"""Batches of texts with images, and what models of transformers compute of them: for the scripts of several families."""

import torch

PAD, EOS = 0, 59


def shaken(model):
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.15)
    return model.eval()


def rows(images):
    """Rows of ids, with one image, two, none, and one at the end; `images` are the tokens of each of the four."""
    words = lambda count: torch.randint(2, EOS, (count,)).tolist()
    return [
        words(2) + images[0] + words(4), words(1) + images[1] + words(2) + images[2] + words(3), words(5),
        words(6) + images[3] + words(1),
    ]


def padded(rows, side):
    length = max(map(len, rows))
    ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for at, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[at, place], mask[at, place] = torch.tensor(row), 1
    return ids, mask


def computed(model, reference, prefix, ids, mask, image, **inputs):
    """The logits, the loss and all gradients; `image` is the token of images."""
    # The first token of a row has nothing before it but padding, whose states are nobody's.
    first = mask.cumsum(1) <= 1
    labels = ids.masked_fill((ids == image) | (mask == 0) | first, -100)
    model.zero_grad()
    result = model(input_ids=ids, attention_mask=mask, labels=labels, **inputs)
    result.loss.backward()
    reference |= {
        f"{prefix}.ids": ids, f"{prefix}.mask": mask, f"{prefix}.labels": labels,
        f"{prefix}.logits": result.logits.detach().clone(), f"{prefix}.loss": result.loss.detach().clone(),
    }
    for name, tensor in model.named_parameters():
        if tensor.grad is not None:
            reference[f"{prefix}.grad.{name}"] = tensor.grad.clone()


def renamed(state, *rules):
    for before, after in rules:
        state = {name.replace(before, after, 1) if name.startswith(before) else name: state[name] for name in state}
    return {name: tensor.clone() for name, tensor in state.items()}
