"""The model of a measurement, which is made in one of the shapes of `make_models.py` where it is not there."""

import argparse
import subprocess
import sys
from pathlib import Path


def parser(description):
    """The arguments that every measurement has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", type=Path)
    parser.add_argument("--shape", default="3b")
    parser.add_argument("--device", required=True)
    return parser


def folder(options):
    """The folder of the model."""
    if (options.model / "config.json").exists():
        return options.model
    maker = Path(__file__).with_name("make_models.py")
    made = ["--only", "--shape", options.shape, "--device", options.device]
    subprocess.run([sys.executable, str(maker), "models", *made], check=True)
    return Path("models") / f"shape-{options.shape}"
