"""A chat adapter on the real SmolLM2-135M-Instruct, by `ln-tuning` on its GGUF file, beside PEFT's LN tuning and LoRA.

`python finetune_demo.py --binary target/release/ln-tuning --out DIR [--rates] [--steps N]`

The model learns to answer what a Python function does as its documentation does, from the chats of chats.py. All see the
same tokens in the same batches. PEFT's LN tuning trains in bf16, as it does on a bf16 model, and in f32; LoRA has rank 8
on q and v. Each has the best of its three rates; --rates runs all of them, and is the proof. Writes curves.svg, demo.json,
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

# The best rate is the first.
OURS = "ln-tuning, f32 masters", (1e-2, 3e-3, 1e-3)
PEFT = {
    "PEFT LN tuning, bf16": ("norms", torch.bfloat16, (1e-2, 3e-3, 1e-3)),
    "PEFT LN tuning, f32": ("norms", torch.float32, (1e-2, 3e-3, 1e-3)),
    "PEFT LoRA, r = 8": ("lora", torch.bfloat16, (1e-2, 3e-3, 1e-3)),
}
# None of these functions is in the chats to train on; the last one is of another package.
QUESTIONS = [
    "What does the Python function scipy.linalg.solve_triangular(a, b, trans, lower) do?",
    "What does the Python function networkx.algorithms.flow.utils.build_residual_network(G, capacity) do?",
    "What does the Python function pandas.read_csv(path, sep, header) do?",
    "What is the capital of France?",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="ln-tuning")
    parser.add_argument("--out", type=Path, default=Path("target/finetune-demo"))
    parser.add_argument("--rates", action="store_true", help="all three rates of each")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    begun = time.perf_counter()
    torch.set_num_threads(args.threads)
    data, file = args.out / "data", smollm2.where()
    subprocess.run([sys.executable, Path(__file__).parent / "chats.py", data], check=True)
    train, evaluation = smollm2.chats(data / "train.jsonl"), smollm2.chats(data / "eval.jsonl")
    base = smollm2.model(torch.bfloat16)
    before = versus.evaluate(base, evaluation, 8)
    first = float(base(**versus.padded(train[:8])).loss)
    norms = base.state_dict()
    print(f"evaluation loss of the base: {before:.3f}", flush=True)
    results = {}

    def settings(lr):
        interval, warmup = max(args.steps // 4, 1), min(2, args.steps - 1)
        return versus.Settings(lr=lr, steps=args.steps, batch=8, interval=interval, warmup=warmup)

    def keep(name, lr, result):
        # The first step's loss is that of the base: the tokens that are learned are the same ones.
        assert abs(result.losses[0] - first) < 0.03, f"{name} begins at {result.losses[0]}, the base at {first}"
        print(
            f"{name:<24} lr {lr:.0e}  loss {before:.3f} -> {result.last:.3f}  {result.weights:>7} weights, "
            f"{result.moved / result.weights:4.0%} moved, {result.seconds:.0f} s",
            flush=True,
        )
        results.setdefault(name, {})[lr] = result

    name, rates = OURS
    for lr in rates if args.rates else rates[:1]:
        out = args.out / ("ours" if lr == rates[0] else f"ours-{lr:.0e}")
        keep(name, lr, versus.ours(args.binary, file, norms, "bf16", data, out, settings(lr)))
    generate = [args.binary, "generate", "--model", file, "--adapter", f"tuned={args.out / 'ours' / 'adapter'}"]
    answers = ""
    for question in QUESTIONS:
        command = [*generate, "--base", "--kind", "bf16", "--chat", "--max-new-tokens", "48", "--prompt", question]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        answers += f"{question}\n\n{said}\n"
    print(answers, flush=True)
    (args.out / "answers.txt").write_text(answers)
    for name, (method, kind, rates) in PEFT.items():
        for lr in rates if args.rates else rates[:1]:
            keep(name, lr, versus.peft(smollm2.model(kind), method, train, evaluation, settings(lr)))
    best = {name: min(runs.items(), key=lambda run: run[1].last) for name, runs in results.items()}
    curves = {
        f"{name}, lr {lr:.0e}: {result.last:.3f}": [(0, before), *result.curve] for name, (lr, result) in best.items()
    }
    versus.draw(args.out / "curves.svg", "Evaluation loss of SmolLM2-135M-Instruct", curves)
    report = {name: {f"{lr:.0e}": dataclasses.asdict(r) for lr, r in runs.items()} for name, runs in results.items()}
    (args.out / "demo.json").write_text(json.dumps({"before": before, **report}, indent=1) + "\n")
    print(f"{time.perf_counter() - begun:.0f} s; everything is in {args.out}")


main()
