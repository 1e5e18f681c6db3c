"""Writes a text classification task that any machine can make: which project does a documentation string come from?

`python docstrings.py OUT_DIR` reads the sources (nothing is imported) of seven packages and writes train.jsonl and
eval.jsonl. With the versions in tests/python/requirements.txt the task is always the same. Names that
give the answer away are masked.
"""

import ast
import hashlib
import importlib.metadata
import json
import re
import sys
import sysconfig
from pathlib import Path

PACKAGES = ["networkx", "numpy", "scipy", "sklearn", "sympy", "torch", "transformers"]
EACH = 500
EVAL = 100
MASKED = re.compile(
    r"networkx|numpy|scipy|scikit-learn|sklearn|sympy|py?torch|transformers?|hugging ?face|python|\bnx\b|\bnp\b", re.I
)


def openings(folder):
    """The first paragraphs of the documentation strings below a folder."""
    for path in sorted(folder.rglob("*.py")):
        if any(part in ("tests", "test", "site-packages", "_vendor") for part in path.parts[len(folder.parts) :]):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                text = (ast.get_docstring(node) or "").split("\n\n")[0]
                text = MASKED.sub("it", " ".join(text.split()))[:300]
                if len(text) >= 40:
                    yield text


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    packages = Path(sysconfig.get_paths()["purelib"])
    folders = {name: packages / name for name in PACKAGES}
    train, evaluation, seen = [], [], set()
    for label, folder in folders.items():
        texts = {}
        for text in openings(folder):
            if text not in seen:
                seen.add(text)
                texts[hashlib.sha1(text.encode()).hexdigest()] = text
        # A choice that does not depend on the order of files.
        rows = [{"text": texts[key], "label": label} for key in sorted(texts)[: EACH + EVAL]]
        assert len(rows) == EACH + EVAL, f"{label} has only {len(rows)} texts"
        train += rows[:EACH]
        evaluation += rows[EACH:]
    for name, rows in [("train", train), ("eval", evaluation)]:
        rows.sort(key=lambda row: hashlib.sha1(row["text"].encode()).hexdigest())
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{len(train)} texts to train on, {len(evaluation)} to evaluate on, of {versions}")


def version(name):
    return importlib.metadata.version({"sklearn": "scikit-learn"}.get(name, name))


main(Path(sys.argv[1]))
