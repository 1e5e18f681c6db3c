"""LN tuning of a bf16 model by `ln-tuning train` and by PEFT, side by side: the same model, rows, order and batches.

`python bf16_vs_peft.py --binary target/release/ln-tuning --out DIR [--steps N] [--base-steps N] [--real-steps N]
[--eval-rows N] [--rows N]`

First a model whose norms are near 1, with the settings of PEFT's own benchmark (AdamW with lr 1e-4 and weight decay 0.1,
cosine schedule, clipping at 1.0): a small Llama that was trained on documentation strings of torch and numpy is tuned to
those of sympy. Then the real SmolLM2-135M-Instruct, on the chats of chats.py, with lr 1e-4 and 1e-3; --real-steps 0 leaves
it out. Prints the curves and writes bf16.svg and bf16.json to DIR.
"""

import argparse
import ast
import dataclasses
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import smollm2
import versus
from versus import Settings

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LENGTH = 96


def strings(package, count):
    """The first documentation strings of a package, in the order of its files."""
    found = {}
    for path in sorted((Path(sysconfig.get_paths()["purelib"]) / package).rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                text = " ".join((ast.get_docstring(node) or "").split())[:400]
                if len(text) >= 80:
                    found[text] = None
        if len(found) >= count:
            break
    return list(found)[:count]


def make_base(directory, texts, steps):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    rows = [(row(fast, text)[:LENGTH], 0) for text in texts]
    for step in range(steps):
        start = step * 16 % (len(rows) - 16)
        loss = model(**versus.padded(rows[start : start + 16])).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"base, step {step}: loss {loss:.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(directory)


def row(tokenizer, text):
    return tokenizer(text)["input_ids"] + [0]


def near_one(args):
    """(ours, PEFT) for the small Llama."""
    directory = args.out / "base"
    settings = Settings(
        lr=1e-4, steps=args.steps, batch=4, interval=max(args.steps // 20, 1), weight_decay=0.1, max_length=LENGTH
    )
    if not (directory / "model.safetensors").exists():
        count = min(16 * args.base_steps, 2000)
        make_base(directory, strings("torch", count * 3 // 4) + strings("numpy", count // 4), args.base_steps)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    # Those that fit into a row as a whole.
    count = min(settings.steps * settings.batch, args.rows) + args.eval_rows
    rows = {text: row(tokenizer, text) for text in strings("sympy", 4 * count)}
    texts = [text for text, ids in rows.items() if len(ids) <= LENGTH][:count]
    for name, part in [("train", texts[: -args.eval_rows]), ("eval", texts[-args.eval_rows :])]:
        (args.out / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    norms = load_file(directory / "model.safetensors")
    own = versus.ours(args.binary, directory, norms, "bf16", args.out, args.out / "ours", settings)
    rows = [(rows[text], 0) for text in texts]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    return own, versus.peft(model, "norms", rows[: -args.eval_rows], rows[-args.eval_rows :], settings)


def real(args):
    """(ours, PEFT) for SmolLM2, by learning rate."""
    data, found = args.out / "chats", {}
    subprocess.run([sys.executable, Path(__file__).parent / "chats.py", data], check=True)
    train, evaluation = smollm2.chats(data / "train.jsonl"), smollm2.chats(data / "eval.jsonl")
    for lr in (1e-4, 1e-3):
        steps = args.real_steps
        settings = Settings(lr=lr, steps=steps, batch=4, interval=max(steps // 2, 1), warmup=min(2, steps - 1))
        norms = smollm2.model(torch.bfloat16).state_dict()
        own = versus.ours(args.binary, smollm2.where(), norms, "bf16", data, args.out / f"real-{lr}", settings)
        theirs = versus.peft(smollm2.model(torch.bfloat16), "norms", train, evaluation, settings)
        found[lr] = own, theirs
    return found


def show(title, own, theirs):
    print(f"{title}\n{'step':>6} {'ours':>9} {'PEFT':>9}")
    for (step, a), (_, b) in zip(own.curve, theirs.curve):
        print(f"{step:>6} {a:>9.4f} {b:>9.4f}")
    weights = own.weights
    print(f"weights that moved: ours {own.moved} of {weights}, PEFT {theirs.moved} of {weights}")
    print(f"seconds: ours {own.seconds:.1f}, PEFT {theirs.seconds:.1f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="ln-tuning")
    parser.add_argument("--out", type=Path, default=Path("target/bf16"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--base-steps", type=int, default=1500)
    parser.add_argument("--real-steps", type=int, default=40)
    parser.add_argument("--eval-rows", type=int, default=100, help="of the small Llama")
    parser.add_argument("--rows", type=int, default=1000, help="the most that the small Llama learns from")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    report = {}
    if args.real_steps > 0:
        for lr, (own, theirs) in real(args).items():
            show(f"SmolLM2-135M-Instruct, lr {lr:.0e}", own, theirs)
            report[f"{lr:.0e}"] = {"ours": dataclasses.asdict(own), "peft": dataclasses.asdict(theirs)}
    if args.steps > 0:
        own, theirs = near_one(args)
        show("a small Llama, norms near 1, lr 1e-04", own, theirs)
        curves = {"PEFT, trained in bf16": theirs.curve, "ln-tuning, f32 masters": own.curve}
        versus.draw(args.out / "bf16.svg", "Evaluation loss of a bf16 model, AdamW, lr 1e-4", curves)
        report["near_one"] = {"ours": dataclasses.asdict(own), "peft": dataclasses.asdict(theirs)}
    (args.out / "bf16.json").write_text(json.dumps(report, indent=1) + "\n")


main()
