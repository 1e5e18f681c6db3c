"""`check.py DIR --device cpu|cuda [--only SCRIPT[:CASE,…] …] [--shape 3b|small|none]`: the whole check, in a new folder.

It makes the models, computes f64, PEFT's and ours, a process for each kind and all at once, and compares. The program is
the one that LN_TUNING_GPU_CHECK names.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--only", nargs="*", help="scripts of tests/python, with their cases or without; none without a name")
    parser.add_argument("--shape", default="none")
    parser.add_argument("--kinds", default="float32,bfloat16,float16")
    parser.add_argument("--attention", default="cudnn,flash,math")
    parser.add_argument("--models", type=Path, help="models of make_models.py with their references, made before")
    parser.add_argument("--dry-run", action="store_true", help="numbers are not judged")
    options = parser.parse_args()
    program = os.environ["LN_TUNING_GPU_CHECK"]
    models, begun = str(options.models or options.folder / "models"), time.monotonic()

    def python(script, *arguments):
        return [sys.executable, str(HERE / script), *arguments]

    dry = ["--dry-run"] * options.dry_run

    def say(text):
        print(f"{time.monotonic() - begun:6.1f} s  {text}", flush=True)

    only = [] if options.only is None else ["--only", *options.only]
    options.folder.mkdir(parents=True, exist_ok=True)
    commands = {}
    if options.models is None:
        subprocess.run(
            python("make_models.py", models, "--shape", options.shape, "--device", options.device, *only), check=True
        )
        say("models made")
        commands["f64"] = python("theirs.py", models, "--reference")
    # Most of a dry run's time is the start of processes.
    for kind in [options.kinds] if options.dry_run else options.kinds.split(","):
        how = ["--device", options.device, "--kind", kind, "--attention", options.attention]
        commands[f"PEFT {kind}"] = python("theirs.py", models, *how)
        commands[f"ours {kind}"] = [program, "check", models, *how, *dry]
    running = {name: subprocess.Popen(command) for name, command in commands.items()}
    for name, process in running.items():
        say(f"{name}: {'done' if process.wait() == 0 else f'failed with {process.returncode}'}")
    judge = python("compare.py", models, "--out", str(options.folder / "check.jsonl"))
    sys.exit(subprocess.run(judge + dry).returncode)


main()
