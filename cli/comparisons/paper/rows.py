"""Rows of tokens from scenes: the picture, then questions and answers; the answers are learned, with their ends."""

import dataclasses
import random

import torch

import base
import questions
import tower

IGNORED = -100


@dataclasses.dataclass
class Row:
    tokens: list
    labels: list  # IGNORED where nothing is learned
    scene: object  # None for a text without a picture
    turns: list = dataclasses.field(default_factory=list)  # (question, answer)


def row(tokenizer, scene, turns):
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    tokens, labels = [], []
    for place, (question, answer) in enumerate(turns):
        picture = f"Picture:{base.IMAGE * tower.PATCHES}\n" if place == 0 else ""
        given, reply = ids(f"{picture}{question}\n"), ids(f"{answer}{tokenizer.eos_token}")
        tokens += given + reply
        labels += [IGNORED] * len(given) + reply
    return Row(tokens, labels, scene, list(turns))


def of_kind(tokenizer, kind, made, count):
    """Rows of one kind of data with `count` tokens in all, or a row more."""
    chance, rows, total = random.Random(kind), [], 0
    for scene in made:
        if total >= count:
            return rows
        rows.append(row(tokenizer, scene, questions.turns(kind, scene, chance)))
        total += len(rows[-1].tokens)
    raise ValueError(f"{len(made)} scenes are too few for {count} tokens of {kind}")


def mixed(parts):
    """The rows of all parts in one order, in which each part is spread evenly."""
    placed = [((at + 0.5) / len(part), which, at) for which, part in enumerate(parts) for at in range(len(part))]
    return [parts[which][at] for _, which, at in sorted(placed)]


def held_out(tokenizer, made):
    """A question about each scene; the kinds of questions take turns."""
    chance = random.Random("held out")
    asked = [questions.ASKED[at % len(questions.ASKED)](scene, chance) for at, scene in enumerate(made)]
    return [row(tokenizer, scene, [turn]) for scene, turn in zip(made, asked)]


def batch(rows):
    """What transformers' Llava takes, and the labels."""
    longest = max(len(row.tokens) for row in rows)
    fill = lambda values, value: values + [value] * (longest - len(values))  # noqa: E731
    given = {
        "input_ids": torch.tensor([fill(row.tokens, 0) for row in rows]),
        "attention_mask": torch.tensor([fill([1] * len(row.tokens), 0) for row in rows]),
    }
    pictured = [row.scene for row in rows if row.scene is not None]
    if pictured:
        given["pixel_values"] = tower.pixels(pictured).bfloat16()
    return given, torch.tensor([fill(row.labels, IGNORED) for row in rows])
