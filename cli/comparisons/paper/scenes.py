"""Scenes: 2 × 2 pictures of different kinds."""

import dataclasses
import random

import numpy

import pictures

PLACES = ["top left", "top right", "bottom left", "bottom right"]
SIZE = 2 * pictures.SIZE


@dataclasses.dataclass
class Scene:
    kinds: list  # of the four places, as indices into pictures.NAMES
    image: numpy.ndarray  # [SIZE, SIZE], 0 to 255


def make(part, clothes, count, seed):
    """`count` scenes from the pictures of a part; about half of the pictures are digits."""
    chance = random.Random(f"{part} {seed}")
    images, kinds = pictures.read(part, clothes)
    of_kind = [numpy.flatnonzero(kinds == kind) for kind in range(len(pictures.NAMES))]
    scenes = []
    for _ in range(count):
        chosen = []
        while len(chosen) < len(PLACES):
            kind = chance.randrange(len(pictures.NAMES))
            if kind not in chosen:
                chosen.append(kind)
        four = [images[chance.choice(of_kind[kind])] for kind in chosen]
        scenes.append(Scene(chosen, numpy.block([[four[0], four[1]], [four[2], four[3]]])))
    return scenes
