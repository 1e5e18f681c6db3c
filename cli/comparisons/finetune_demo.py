"""A chat adapter on the real SmolLM2-135M-Instruct, by `ln-tuning` on its GGUF file, beside PEFT's LN tuning and LoRA.

`python finetune_demo.py --binary target/release/ln-tuning --out DIR [--all]`

The model learns to answer what a Python function does as its documentation does, from the chats of chats.py. All see the
same tokens in the same batches, in bf16. PEFT's LN tuning trains in bf16, too; LoRA has rank 8 on q and v, in f32. Both
run at three rates. --all also runs ours at three, and PEFT's LN tuning of an f32 model. Writes curves.svg, demo.json,
answers.txt and the adapter to DIR.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import smollm2
import versus

import torch

RATES = (3e-3, 1e-3, 1e-2)
OURS = "ln-tuning, f32 masters"
PEFT = {"PEFT LN tuning, bf16": ("norms", torch.bfloat16), "PEFT LoRA, r = 8": ("lora", torch.bfloat16)}
MORE = {"PEFT LN tuning, f32": ("norms", torch.float32)}
STEPS, BATCH = 40, 4
# None of these functions is in the chats to train on; pandas is in none of them.
QUESTIONS = [
    "What does the Python function scipy.linalg.solve_triangular(a, b, trans, lower) do?",
    "What does the Python function networkx.algorithms.flow.utils.build_residual_network(G, capacity) do?",
    "What does the Python function pandas.read_csv(path, sep, header) do?",
    "What is the capital of France?",
]


def smooth(losses, width=8):
    parts = [losses[max(0, step - width) : step] for step in range(1, len(losses) + 1)]
    return [(step, sum(part) / len(part)) for step, part in enumerate(parts, 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="ln-tuning")
    parser.add_argument("--out", type=Path, default=Path("target/finetune-demo"))
    parser.add_argument("--all", action="store_true", help="also the runs that only confirm the others")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    begun = time.perf_counter()
    torch.set_num_threads(args.threads)
    data, file = args.out / "data", smollm2.where()
    subprocess.run([sys.executable, Path(__file__).parent / "chats.py", data], check=True)
    train, evaluation = smollm2.chats(data / "train.jsonl"), smollm2.chats(data / "eval.jsonl")
    base = smollm2.model(torch.bfloat16)
    before = versus.evaluate(base, evaluation, 8)
    first = float(base(**versus.padded(train[:BATCH])).loss)
    norms = base.state_dict()
    print(f"evaluation loss of the base: {before:.3f}", flush=True)
    results = {}

    def settings(lr):
        return versus.Settings(lr=lr, steps=STEPS, batch=BATCH, interval=STEPS, warmup=2)

    def keep(name, lr, result):
        # The first step's loss is that of the base: the tokens that are learned are the same ones.
        assert abs(result.losses[0] - first) < 0.03, f"{name} begins at {result.losses[0]}, the base at {first}"
        print(
            f"{name:<24} lr {lr:.0e}  loss {before:.3f} -> {result.last:.3f}  {result.weights:>7} weights, "
            f"{result.moved / result.weights:4.0%} moved, {result.seconds:.0f} s",
            flush=True,
        )
        results.setdefault(name, {})[lr] = result

    for lr in RATES if args.all else RATES[:1]:
        out = args.out / ("ours" if lr == RATES[0] else f"ours-{lr:.0e}")
        keep(OURS, lr, versus.ours(args.binary, file, norms, "bf16", data, out, settings(lr)))
    generate = [args.binary, "generate", "--model", file, "--adapter", f"tuned={args.out / 'ours' / 'adapter'}"]
    answers = ""
    for question in QUESTIONS:
        command = [*generate, "--base", "--chat", "--max-new-tokens", "48", "--prompt", question]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        answers += f"{question}\n\n{said}\n"
    print(answers, flush=True)
    (args.out / "answers.txt").write_text(answers)
    for name, (method, kind) in {**PEFT, **(MORE if args.all else {})}.items():
        for lr in RATES:
            keep(name, lr, versus.peft(smollm2.model(kind), method, train, evaluation, settings(lr)))
    curves = {}
    for name, runs in results.items():
        lr, result = min(runs.items(), key=lambda run: run[1].last)
        curves[f"{name}, lr {lr:.0e}: {before:.2f} → {result.last:.2f}"] = smooth(result.losses)
    title = "Loss of each step (mean of the last 8), and evaluation loss before → after"
    versus.draw(args.out / "curves.svg", title, curves)
    report = {name: {f"{lr:.0e}": dataclasses.asdict(r) for lr, r in runs.items()} for name, runs in results.items()}
    (args.out / "demo.json").write_text(json.dumps({"before": before, **report}, indent=1) + "\n")
    print(f"{time.perf_counter() - begun:.0f} s; everything is in {args.out}")


main()
