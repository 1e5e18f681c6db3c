"""Starts a program by torchrun: `torchrun.py NAME=VALUE… -- ARGUMENTS OF TORCHRUN…`, with these variables set."""

import os
import sys

from torch.distributed.run import main

split = sys.argv.index("--")
os.environ.update(variable.split("=", 1) for variable in sys.argv[1:split])
main(sys.argv[split + 1 :])
