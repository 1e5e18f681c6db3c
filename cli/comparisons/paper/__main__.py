"""The paper in small: SmolLM2-135M learns to see 2 × 2 scenes, by tuning LayerNorm and by its rivals.

`python cli/comparisons/paper --out DIR [--docs DIR] [--binary ln-tuning] [--twin] [--quick]`

A small tower of CLIP's architecture is trained on real pictures and put in front of the real text model, as
transformers' Llava. A connector is trained on captions and is the same for all. Then each method trains at three rates
on the same rows, and is scored at its best. Writes paper.json to DIR, and the tables and the picture of paper.md to the
directory of --docs. All seeds are fixed.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
import transformers  # noqa: E402

import base  # noqa: E402
import connector  # noqa: E402
import picture  # noqa: E402
import pictures  # noqa: E402
import questions  # noqa: E402
import runs  # noqa: E402
import table  # noqa: E402
import tower  # noqa: E402
from data import Data  # noqa: E402
from methods import METHODS  # noqa: E402
from sizes import FULL, QUICK  # noqa: E402

ALL = list(questions.KINDS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("target/paper"))
    parser.add_argument("--docs", type=Path, default=Path("target/paper"), help="where paper.md and paper.svg go")
    parser.add_argument("--binary", help="ln-tuning, which then trains the norms in place of PyTorch")
    parser.add_argument("--twin", action="store_true", help="trains the norms in PyTorch as well")
    parser.add_argument("--quick", action="store_true", help="tests the path; the figures mean nothing")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    begun = time.perf_counter()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    sizes = QUICK if args.quick else FULL
    pictures.where()

    seeing, named, clothes = tower.train(sizes.tower_steps)
    tokenizer = base.tokenizer()
    model, data = base.model(seeing, tokenizer), Data(tokenizer, sizes)
    first = connector.teach(model, tokenizer, data.captions)
    print(f"connector: loss {first.losses[0]:.2f} -> {first.losses[-1]:.2f}, {first.seconds:.0f} s", flush=True)
    base.save(model, tokenizer, args.out / "base")
    before = runs.score(model, data)
    print(f"then {before.exact:.1%} of the questions, captions {before.caption:.3f}, English {before.english:.3f}")

    start, chosen, tried = runs.Base(model, data, args.out, args.binary), [], []
    for method in METHODS:
        best, at_rates = runs.best(start, method, ALL)
        seeds = [runs.again(start, method, best.rate, seed, ALL) for seed in range(1, method.seeds)]
        chosen.append([best, *seeds])
        tried.append(at_rates)
    kinds = [chosen[0][0]]
    kinds += [runs.again(start, METHODS[0], chosen[0][0].rate, 0, [kind]) for kind in ALL]
    if args.binary and args.twin:
        twin = runs.again(runs.Base(model, data, args.out, None), METHODS[0], chosen[0][0].rate, 0, ALL)
        twin.method += ", in PyTorch"
        chosen.append([twin])
    chosen.sort(key=lambda made: -sum(one.scores.exact for one in made) / len(made))

    seconds = time.perf_counter() - begun
    report = {
        "tower": {"named": named, "clothes": clothes}, "connector": dataclasses.asdict(first),
        "before": dataclasses.asdict(before), "kinds": [dataclasses.asdict(made) for made in kinds],
        "methods": [[dataclasses.asdict(one) for one in made] for made in chosen],
        "tried": [[dataclasses.asdict(one) for one in made] for made in tried], "seconds": seconds,
    }
    (args.out / "paper.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = [
        "![Exact match and forgetting of each method](paper.svg)", "",
        f"In the order of exact match: {', '.join(made[0].method for made in chosen)}.", "",
        f"The tower names {named:.1%} of held-out pictures, and {clothes:.1%} of the clothes. All took "
        f"{seconds / 60:.0f} minutes on {args.threads} processors. Two values in a cell are those of two seeds.", "",
        *table.methods(before, chosen), "",
        "Exact match by kind of question, at the first seed, in %:", "", *table.asked(before, chosen), "",
        f"{METHODS[0].name}, with as many tokens of each kind of data, at the same rate:", "", *table.kinds(kinds), "",
        "Other questions, by which the rates were chosen:", "", *table.rates(tried),
    ]
    print("\n".join(lines))
    picture.draw(args.docs / "paper.svg", before, chosen)
    table.put(args.docs / "paper.md", lines)
    print(f"{seconds:.0f} s; everything is in {args.out}")


main()
