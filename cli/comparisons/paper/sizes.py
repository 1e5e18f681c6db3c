"""The lengths of all parts. The full ones take 20 minutes on two processors; the quick ones only test the path."""

import dataclasses


@dataclasses.dataclass
class Sizes:
    tower_steps: int = 600
    captions: int = 1000  # to train the connector
    tokens: int = 5400  # of each run, pictures included
    chosen_on: int = 144  # other questions, by which rates are chosen
    rates: int = 3  # that are tried for each method
    asked: int = 600
    described: int = 100
    paragraphs: int = 8  # of plain English, of each package


FULL = Sizes()
QUICK = Sizes(tower_steps=40, captions=16, tokens=400, chosen_on=3, rates=1, asked=6, described=3, paragraphs=1)
