"""Starts a program by torchrun, with variables set: `torchrun.py [NAME=VALUE… --] ARGUMENTS OF TORCHRUN…`."""

import os
import sys

from torch.distributed.run import main

split = sys.argv.index("--") if "--" in sys.argv else 0
os.environ.update(variable.split("=", 1) for variable in sys.argv[1:split])
main(sys.argv[split + 1 :])
