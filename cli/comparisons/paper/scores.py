"""Scores of a model: the loss of rows, and the share of answers that greedy generation gives to the letter."""

import torch
from torch.nn.functional import cross_entropy

import rows

BATCH = 32


def logits(model, some):
    """(logits, labels) of the learned tokens, and the row of each. Llava's head multiplies no other positions."""
    given, labels = rows.batch(some)
    labels = labels[:, 1:]
    learned = labels != rows.IGNORED
    hidden = model.model(**given, use_cache=False).last_hidden_state[:, :-1]
    return model.lm_head(hidden[learned]).float(), labels[learned], learned.nonzero()[:, 0]


def batches(some):
    some = sorted(some, key=lambda row: len(row.tokens))
    return [some[at : at + BATCH] for at in range(0, len(some), BATCH)]


@torch.no_grad()
def loss(model, some):
    """The mean of the learned tokens."""
    total = count = 0
    for part in batches(some):
        found, labels, _ = logits(model, part)
        total += float(cross_entropy(found, labels, reduction="sum"))
        count += len(labels)
    return total / count


@torch.no_grad()
def exact(model, some):
    """{question: (right, asked)} by the first two words of a question. An answer is the greedy one if each of its
    tokens, its end included, is the likeliest behind those before it."""
    counts = {}
    for part in batches(some):
        found, labels, owners = logits(model, part)
        right = found.argmax(-1) == labels
        for place, row in enumerate(part):
            name = " ".join(row.turns[0][0].split()[:2])
            good, asked = counts.get(name, (0, 0))
            counts[name] = (good + bool(right[owners == place].all()), asked + 1)
    return counts


def share(counts):
    return sum(right for right, _ in counts.values()) / sum(asked for _, asked in counts.values())
