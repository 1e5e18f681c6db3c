"""A sweep of eight learning rates beside eight runs one after the other, on a small random Llama.

`sweep.py --out DIR --binary PROGRAM [--batch-size N] [--hidden N] [--layers N] [--tokens N] [--steps N] [--rounds N]`
prints a table: the seconds and the CPU's seconds of each way, the largest memory of a process, and how much less the
sweep takes. The ways take turns, so that other work on the machine harms all of them alike; medians are shown. On the
way it checks that losses are the same: to the bit with --exact, but for rounding without.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

RATES = [1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2]
WORDS = "a of the in gold silver old wise fox dog jumps over lazy quick brown time saves nine penny earned".split()


def make(directory, options):
    """A random model with its tokenizer, and texts of so many tokens."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<s>", "</s>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    hidden = options.hidden
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=options.layers, vocab_size=8192,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, max_position_embeddings=1024,
        bos_token_id=0, eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    drawn = random.Random(0)
    lines = [json.dumps({"text": " ".join(drawn.choices(WORDS, k=options.tokens - 1))}) for _ in range(512)]
    (directory / "train.jsonl").write_text("\n".join(lines))


def measured(command):
    """Seconds, the CPU's seconds, and the largest memory in MB of a process."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command} failed")
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--binary", required=True)
    for name, default in [("batch-size", 1), ("hidden", 512), ("layers", 8), ("tokens", 32), ("steps", 30), ("rounds", 3)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    model = options.out / "model"
    shutil.rmtree(options.out, ignore_errors=True)
    model.mkdir(parents=True)
    make(model, options)
    settings = {
        "model": model, "data.train": model / "train.jsonl", "data.packing": "false", "device": "cpu", "threads": 1,
        "workers": 1, "batch_size": options.batch_size, "max_steps": options.steps, "save_interval": options.steps,
    }
    base = [options.binary, "train"]
    for key, value in settings.items():
        base += ["--set", f"{key}={value}"]
    rates = ",".join(map(str, RATES))
    ways = {"8 runs": [], "sweep --exact": ["--exact"], "sweep": []}
    results = {way: [] for way in ways}
    for number in range(options.rounds):
        for way, more in ways.items():
            out = options.out / f"{way}-{number}"
            if way == "8 runs":
                runs = [measured([*base, "--set", f"out={out / str(r)}", "--set", f"optimizer.lr={r}"]) for r in RATES]
                seconds, cpu, memory = zip(*runs)
                results[way].append((sum(seconds), sum(cpu), max(memory)))
            else:
                sweep = ["--set", f"out={out}", "--sweep", f"optimizer.lr={rates}", *more]
                results[way].append(measured([*base, *sweep]))
    alone = [losses(options.out / "8 runs-0" / str(rate)) for rate in RATES]
    names = [f"lr={rate}" for rate in RATES]
    names = [name.replace("lr=0.0001", "lr=1e-4").replace("lr=0.0003", "lr=3e-4") for name in names]
    exact = [losses(options.out / "sweep --exact-0" / "runs" / name) for name in names]
    assert exact == alone, "a sweep with --exact gives other losses than runs alone"
    together = [losses(options.out / "sweep-0" / "runs" / name) for name in names]
    pairs = [(a, b) for own, other in zip(alone, together) for a, b in zip(own, other)]
    apart = max(abs(a - b) / abs(a) for a, b in pairs)
    assert apart < 1e-3, f"the losses of a sweep are {apart} apart from those of runs alone"
    size = sum(file.stat().st_size for file in model.glob("*.safetensors")) / 1e6
    print(f"{options.layers} layers of {options.hidden}, {size:.0f} MB; batches of {options.batch_size} × {options.tokens} "
          f"tokens, {options.steps} steps, one thread; losses at most {apart:.0e} apart")
    print("| way | seconds | CPU seconds | memory, MB | CPU of 8 runs / of this |\n|---|---|---|---|---|")
    median = {way: [statistics.median(column) for column in zip(*rows)] for way, rows in results.items()}
    for way, (seconds, cpu, memory) in median.items():
        print(f"| {way} | {seconds:.1f} | {cpu:.1f} | {memory:.0f} | {median['8 runs'][1] / cpu:.2f} |")


main()
