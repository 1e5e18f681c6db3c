"""`compare.py DIR [--out check.jsonl] [--dry-run]`: our errors beside those of PEFT, both against f64 on the CPU.

An error is that of a tensor as a whole: the norm of the difference, divided by the norm of the reference. Gradients and
weights are judged together, by the mean square of their tensors' errors; of weights, what counts is how far three steps
have moved them. Ours may err at most 1.5 times what PEFT errs with the same model, kind and attention, in the worst of
its cases, twice that in f32, whose roundings are few; over all models together, the errors of ours in outputs and in
gradients are at most 1.1 times PEFT's, in the geometric mean, in each kind. What may be met by luck is no measure, so
- PEFT's error counts as the rounding of the kind at least: 2^-24, 2^-8, 2^-11 for f32, bf16, f16;
- for a loss, which is one number, PEFT's error in the logits counts too;
- AdamW divides a gradient by its own size: how far it moves a weight with nearly no gradient is a matter of rounding, so
  that only weights with a hundredth of their tensor's gradient count;
- gradients behind a ReLU are judged in f32 only: elsewhere rounding turns units on and off, here and there;
- where PEFT's result is no number (AdamW in f16 divides 0 by 0), ours must have half of the reference right.

A line of JSON each goes to --out, a table to the standard output, the worst first. The exit status is 1 if an error is
too large, or if a result is missing. With --dry-run, under a runtime whose kernels do nothing, numbers are not judged.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ALLOWED = 1.5
# In f32, models of a few numbers differ by what one product adds up in another order. The mean over all shows more.
ALLOWED_F32 = 2.0
ALLOWED_MEAN = 1.1
# Results of a kind that make a mean.
MANY = 100
# transformers keeps T5's `wo` in f32 when all else is f16.
ALLOWED_T5_F16 = 2.0
HALF = 0.5
# Of the size of a gradient in its tensor, from which on a weight's way counts.
COUNTS = 1e-2
ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
SHOWN = 25


def norm(tensor):
    return float(tensor.double().norm())


def relative(found, expected):
    """The error of one tensor."""
    return norm(found.double() - expected) / max(norm(expected), 1e-30)


def of_all(found, expected):
    """The error of several tensors. Those that are nearly nothing beside the others count as their part of them."""
    least = 1e-3 * max(norm(tensor) / math.sqrt(tensor.numel()) for tensor in expected.values())
    squares = [
        (norm(found[name].double() - tensor) / max(norm(tensor), least * math.sqrt(tensor.numel()), 1e-30)) ** 2
        for name, tensor in expected.items()
    ]
    return math.sqrt(sum(squares) / len(squares))


def below(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def errors(found, reference, task):
    """The error of each quantity of each case."""
    for case in task["cases"]:
        yield case, "output", relative(found[f"{case}.output"], reference[f"{case}.output"])
        yield case, "loss", relative(found[f"{case}.loss"], reference[f"{case}.loss"])
        gradients = below(reference, f"{case}.grad.")
        if gradients:
            yield case, "gradients", of_all(below(found, f"{case}.grad."), gradients)
    start, after = below(reference, "before."), below(reference, f"{task['trained']}.after.")
    if after:
        gradients, ours = below(reference, f"{task['trained']}.grad."), below(found, f"{task['trained']}.after.")

        def moved(weights, name):
            gradient = gradients[name]
            counts = gradient.abs() >= COUNTS * norm(gradient) / math.sqrt(gradient.numel())
            return (weights[name].double() - start[name])[counts]

        expected = {name: moved(after, name) for name in after}
        expected = {name: tensor for name, tensor in expected.items() if tensor.numel()}
        yield task["trained"], "weights", of_all({name: moved(ours, name) for name in expected}, expected)


def rows_of(folder, dry_run):
    task = json.loads((folder / "check.json").read_text())
    reference = load_file(folder / "reference.safetensors")
    # A result has an error beside it, or in its place.
    names = {path.name.split(".", 1)[1].rsplit(".", 1)[0] for path in folder.glob("*.*.*.*.*") if path.name[:5] in ("ours.", "their")}
    for name in sorted(names):
        device, kind, attention = name.split(".")
        row = {"model": folder.name, "device": device, "kind": kind, "attention": attention}
        texts = [path.read_text() for path in folder.glob(f"*.{name}.error")]
        if texts:
            yield row | {"error": " | ".join(text.strip().splitlines()[-1] for text in texts), "ok": False}
            continue
        ours, theirs = (load_file(folder / f"{side}.{name}.safetensors") for side in ("ours", "theirs"))
        sizes = {key: tensor.shape for key, tensor in theirs.items() if not key.startswith("before.")}
        if {key: tensor.shape for key, tensor in ours.items()} != sizes:
            apart = sorted(set(sizes) ^ set(ours)) or "other shapes"
            yield row | {"error": f"ours and PEFT's have other tensors: {apart}", "ok": False}
            continue
        if dry_run:
            yield row | {"ok": True}
            continue
        pairs = list(zip(errors(ours, reference, task), errors(theirs, reference, task)))
        worst = {}
        for _, (_, quantity, their) in pairs:
            worst[quantity] = max(worst.get(quantity, 0.0), their if math.isfinite(their) else 0.0)
        for (case, quantity, our), (_, _, their) in pairs:
            floor = max(worst[quantity], ROUNDING[kind], worst["output"] if quantity == "loss" else 0.0)
            ratio = our / floor if math.isfinite(their) else our / HALF
            judged = kind == "float32" or not task["relu"] or quantity in ("output", "loss")
            allowed = ALLOWED_F32 if kind == "float32" else ALLOWED
            allowed = ALLOWED_T5_F16 if task["t5"] and kind == "float16" else allowed
            values = {"case": case, "quantity": quantity, "ours": our, "theirs": their, "ratio": ratio, "judged": judged}
            # A ratio that is no number is no success.
            yield row | values | {"ok": bool(ratio <= (allowed if math.isfinite(their) else 1.0)) or not judged}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for path in sorted(options.folder.glob("*/check.json")):
        try:
            rows += rows_of(path.parent, options.dry_run)
        except Exception as error:
            rows.append({"model": path.parent.name, "error": f"{type(error).__name__}: {error}", "ok": False})
    if options.out:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    faults = [row for row in rows if "error" in row]
    for row in faults:
        print(" ".join(str(row.get(key, "")) for key in ("model", "device", "kind", "attention", "error")))
    judged = sorted((row for row in rows if "ratio" in row), key=lambda row: (row["ok"], not row["judged"], -row["ratio"]))
    if judged:
        print(f"\n{'model':<34}{'kind':<10}{'attention':<10}{'case':<9}{'quantity':<11}{'ours':>10}{'PEFT':>10}{'ratio':>8}")
    for row in judged[:SHOWN]:
        print(
            f"{row['model']:<34}{row['kind']:<10}{row['attention']:<10}{row['case']:<9}{row['quantity']:<11}"
            f"{row['ours']:>10.2e}{row['theirs']:>10.2e}{row['ratio']:>8.2f}{'' if row['ok'] else ' too large'}{'' if row['judged'] else ' not judged'}"
        )
    bad = sum(not row["ok"] for row in rows)
    off = 0
    for kind, quantity in sorted({(row["kind"], row["quantity"]) for row in judged if row["quantity"] in ("output", "gradients")}):
        own = [row for row in judged if (row["kind"], row["quantity"]) == (kind, quantity)]
        logs = [math.log(row["ours"] / row["theirs"]) for row in own if 0 < row["ours"] < math.inf and 0 < row["theirs"] < math.inf]
        mean = math.exp(sum(logs) / max(len(logs), 1))
        off += len(logs) >= MANY and not mean <= ALLOWED_MEAN
        print(f"{kind}, {quantity}: ours err {mean:.3f} times what PEFT errs, the mean of {len(logs)} results")
    models = len({row["model"] for row in rows})
    print(f"\n{models} models, {len(rows)} results, {len(faults)} missing, {bad - len(faults)} errors too large")
    sys.exit(bool(bad or off) or not rows)


main()
