"""Writes chats that any machine can make: a question about a function, and the first paragraph of its documentation.

`python chats.py OUT_DIR` reads the sources (nothing is imported) of four packages and writes train.jsonl and eval.jsonl.
With the versions in tests/python/requirements.txt the chats are always the same. Functions of a module are all in one
file, so that no module is in both.
"""

import ast
import hashlib
import importlib.metadata
import json
import re
import sys
import sysconfig
from pathlib import Path

PACKAGES = ["networkx", "numpy", "scipy", "sympy"]
EACH, EVAL, BATCH = 80, 16, 8
QUESTION = "What does the Python function {} do?"


def functions(folder):
    """(module, name with its parameters, first paragraph of the documentation) of the public functions of a package."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        if any(part in ("tests", "test", "testing", "benchmarks", "externals") for part in parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        # numpy.linalg._linalg.inv is called numpy.linalg.inv.
        module = [part for part in parts if not part.startswith("_")]
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            # :func:`~scipy.fft.fft` is `fft`.
            text = re.sub(r":[a-z:]+:`~?(?:[\w.]*\.)?([^`]*)`", r"`\1`", text).replace("``", "`")
            named = [argument.arg for argument in node.args.posonlyargs + node.args.args][:4]
            if 30 <= len(text) <= 160 and text.endswith(".") and text[0].isupper() and named:
                yield ".".join(parts), f"{'.'.join(module)}.{node.name}({', '.join(named)})", text


def digest(text):
    return hashlib.sha1(text.encode()).hexdigest()


def chat(name, text):
    question = {"role": "user", "content": QUESTION.format(name)}
    return json.dumps({"messages": [question, {"role": "assistant", "content": text}]})


def in_batches(rows):
    """In an order that depends on the texts only, with those of a length together, so that little is padded."""
    rows = sorted(rows, key=digest)
    windows = [sorted(rows[at : at + 16 * BATCH], key=len) for at in range(0, len(rows), 16 * BATCH)]
    batches = [window[at : at + BATCH] for window in windows for at in range(0, len(window), BATCH)]
    return [row for batch in sorted(batches, key=lambda batch: digest(batch[0])) for row in batch]


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    packages = Path(sysconfig.get_paths()["purelib"])
    train, evaluation = [], []
    for package in PACKAGES:
        found, texts = {False: [], True: []}, set()
        for module, name, text in functions(packages / package):
            if text not in texts:
                texts.add(text)
                found[int(digest(module), 16) % 8 == 0].append(chat(name, text))
        for held_out, count, rows in [(False, EACH, train), (True, EVAL, evaluation)]:
            chosen = sorted(found[held_out], key=digest)[:count]
            assert len(chosen) == count, f"{package} has only {len(chosen)} functions"
            rows += chosen
    for name, rows in [("train", train), ("eval", evaluation)]:
        (out / f"{name}.jsonl").write_text("".join(row + "\n" for row in in_batches(rows)))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    print(f"{len(train)} chats to train on, {len(evaluation)} to evaluate on, of {versions}")



main(Path(sys.argv[1]))
