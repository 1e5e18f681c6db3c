"""`two_ranks.py MODEL --shape 3b|small --device cpu|cuda`: training by two ranks of torchrun, beside one process.

Both take the same rows. In f32 the losses and the trained weights must be the same but for rounding, and in any kind the
ranks must have the same weights, bit for bit. With two GPUs the ranks use NCCL. It refuses two ranks on one GPU: there
they go through the host's memory, and a group of one rank shows NCCL by itself. MODEL is made if it is not there.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import shape_model

# Of losses near 10, and of weights near 1 that steps of 1e-3 move.
ALLOWED = {"float32": 1e-4}


def run(name, launcher, options, kind, environment):
    """The output of rank 0, and the weights of each rank."""
    out = Path(name).resolve()
    out.mkdir()
    program = [os.environ["LN_TUNING_GPU_CHECK"], "ranks", str(options.model), "--device", options.device]
    command = [*launcher, *program, "--kind", kind, "--out", str(out), "--steps", str(options.steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    if done.returncode != 0:
        sys.exit(f"{name}: {' '.join(command)} ended with {done.returncode}: see above")
    return json.loads(done.stdout.splitlines()[-1]), [load_file(path) for path in sorted(out.iterdir())]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def torchrun(ranks):
    # Static, with an address: no name of this machine has to be known.
    where = ["--nnodes", "1", "--node-rank", "0", "--master-addr", "127.0.0.1", "--master-port", free_port()]
    return [sys.executable, "-m", "torch.distributed.run", *where, "--nproc-per-node", str(ranks), "--no-python"]


def most(one, other):
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


def main():
    parser = shape_model.parser(__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--kinds", default="float32,bfloat16")
    options = parser.parse_args()
    options.model = shape_model.folder(options).resolve()
    quiet = {"OMP_NUM_THREADS": "1"} if options.device == "cpu" else {}
    devices = torch.cuda.device_count() if options.device == "cuda" else 0
    wrong, sizes = [], "350 KB | 1.4 MB | 100 MB"
    print(f"| ranks, kind | way | a step, ms | all-reduce, ms: {sizes} | from one process | between ranks |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for kind in options.kinds.split(","):
        ways = [("1", [], {}), ("2", torchrun(2), {})]
        if devices == 1:
            ways.append(("1 by NCCL", torchrun(1), {"LN_TUNING_NCCL": "1"}))
        one = None
        for name, launcher, environment in ways:
            found, ranks = run(f"{name}-{kind}", launcher, options, kind, quiet | environment)
            way = "NCCL" if found["nccl"] else "Gloo" if launcher else ""
            if found["nccl"] != (name == "2" and devices > 1 or "NCCL" in name):
                wrong.append(f"{name}, {kind}: by {way}")
            times = " | ".join(f"{ms:.2f}" for ms in found["all_reduce_ms"] or []) or " | | "
            one = one or ranks[0]
            apart, between = most(ranks[0], one), max(most(ranks[0], rank) for rank in ranks)
            print(f"| {name}, {kind} | {way} | {found['step_ms']:.2f} | {times} | {apart:.1e} | {between:.1e} |", flush=True)
            if between != 0 or len(ranks) != found["ranks"]:
                wrong.append(f"{name}, {kind}: {len(ranks)} ranks of {found['ranks']}, {between} apart")
            if not apart <= ALLOWED.get(kind, float("inf")):
                wrong.append(f"{name}, {kind}: {apart} from one process")
    if devices == 1:
        print("one GPU: two ranks go through the host's memory, since NCCL refuses two of them on it")
    if wrong:
        sys.exit("; ".join(wrong))


main()
