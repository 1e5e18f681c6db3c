"""Real pictures of 20 kinds, 28 × 28 in grey: Fashion-MNIST of Debian's package, and the digits of scikit-learn."""

import functools
import gzip
import os
import sys
from pathlib import Path

import numpy
import sklearn.datasets

SIZE = 28
# Debian's place; `make paper` unpacks the package below target where it is not installed.
PLACES = [Path("/usr/share/datasets/fashion-mnist"), Path("target/fashion-mnist/usr/share/datasets/fashion-mnist")]
CLOTHES = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
NAMES = CLOTHES + NUMBERS


def where():
    """The directory of Fashion-MNIST."""
    own = os.environ.get("FASHION_MNIST")
    places = [Path(own)] if own else PLACES
    for place in places:
        if all((place / name).is_file() for part in ("train", "t10k") for name in files(part)):
            return place
    sys.exit(
        f"error: Fashion-MNIST was looked for in {', '.join(map(str, places))} and is not there, or not all of it "
        f"({', '.join(files('train') + files('t10k'))}); install Debian's package dataset-fashion-mnist, or let the "
        "environment variable FASHION_MNIST name a directory with these files"
    )


def files(part):
    return [f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"]


@functools.cache
def read(part, count):
    """(pictures, kinds), `count` of the clothes and all digits of the part: train or t10k. The digits are one in four
    of t10k's, and not those of train."""
    images, labels = ((gzip.decompress((where() / name).read_bytes())) for name in files(part))
    clothes = numpy.frombuffer(images, numpy.uint8, offset=16).reshape(-1, SIZE, SIZE)[:count]
    kinds = numpy.frombuffer(labels, numpy.uint8, offset=8)[:count]
    digits = sklearn.datasets.load_digits()
    held_out = numpy.arange(len(digits.target)) % 4 == 3
    own = held_out if part == "t10k" else ~held_out
    # 8 × 8 points of 0 to 16, each three times as large, in a frame of two.
    large = numpy.kron(digits.images[own], numpy.ones((1, 3, 3))) * 255 / 16
    large = numpy.pad(large.round().astype(numpy.uint8), ((0, 0), (2, 2), (2, 2)))
    return numpy.concatenate([clothes, large]), numpy.concatenate([kinds, digits.target[own] + len(CLOTHES)])
