"""Runs of methods: trained, scored, and the best rate of each kept."""

import copy
import dataclasses

import torch

import ours
import scores
from methods import CONNECTOR_RATE, RATES
from training import Cost, train


@dataclasses.dataclass
class Scores:
    exact: float  # share of the held-out questions
    counts: dict  # (right, asked) of each kind of question
    caption: float  # loss
    english: float  # loss


@dataclasses.dataclass
class Run:
    method: str
    kinds: list
    seed: int
    rate: float
    chosen: float  # share of other questions, by which rates are chosen
    cost: Cost
    scores: Scores = None


def score(model, data):
    counts = scores.exact(model, data.asked)
    caption, english = (scores.loss(model, some) for some in (data.described, data.english))
    return Scores(scores.share(counts), counts, caption, english)


class Base:
    """The model that every run begins with, the data, and `ln-tuning`, if it trains the norms."""

    def __init__(self, model, data, directory, binary):
        self.model, self.data, self.directory, self.binary = model, data, directory, binary

    def train(self, model, method, rate, rows, name):
        if self.binary is None or not method.ours:
            return train(model, method.groups(model, rate), rows)
        connector = CONNECTOR_RATE if method.connector else None
        return ours.train(self.binary, self.directory / "base", model, rows, rate, connector, self.directory / name)


def run(base, method, rate, seed, kinds):
    """(the tuned model, its run without scores)."""
    torch.manual_seed(seed)
    model, data = copy.deepcopy(base.model), base.data
    name = f"{method.name} {'+'.join(kinds)} {seed} {rate:.0e}".replace(" ", "-")
    cost = base.train(model, method, rate, data.train(kinds, seed), name)
    made = Run(method.name, list(kinds), seed, rate, scores.share(scores.exact(model, data.chosen_on)), cost)
    print(
        f"{method.name:<26} {'+'.join(kinds):<29} seed {seed}  lr {rate:.0e}  {made.chosen:.1%} of other "
        f"questions, {cost.weights:,} weights, {cost.seconds:.0f} s",
        flush=True,
    )
    return model, made


def scored(model, made, data):
    made.scores = score(model, data)
    print(
        f"{'':<26} {made.scores.exact:.1%} of the questions, captions {made.scores.caption:.3f}, "
        f"English {made.scores.english:.3f}",
        flush=True,
    )
    return made


def best(base, method, kinds):
    """(the scored run at the best rate, those at all rates). Of three neighbours in RATES: the method's first, the next
    higher one, and the one beyond the better of the two."""
    kept, tried, first = None, [], RATES.index(method.rate)
    for place in range(base.data.sizes.rates):
        beyond = first + 2 if place == 2 and kept[1] is tried[1] else first - 1
        rate = RATES[[first, first + 1, beyond][place]]
        model, made = run(base, method, rate, 0, kinds)
        tried.append(made)
        if kept is None or made.chosen > kept[1].chosen:
            kept = model, made
        del model
    return scored(*kept, base.data), sorted(tried, key=lambda made: made.rate)


def again(base, method, rate, seed, kinds):
    """The scored run at a rate that was chosen before."""
    return scored(*run(base, method, rate, seed, kinds), base.data)
