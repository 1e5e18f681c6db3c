"""`generation.py MODEL --shape 3b|small --device cpu|cuda`: greedy text at batch 1, ours beside transformers' eager.

In f32 the tokens must be the same; in bf16 the tokens per second are compared. Loading is timed on the way. MODEL is made
if it is not there. With --dry-run nothing is judged.
"""

import json
import os
import subprocess
import sys
import time
import warnings

import torch
import transformers

import shape_model

PROMPT = [(31 * place + 17) % 600 + 3 for place in range(24)]


def seconds_of(call, device):
    begun = time.perf_counter()
    result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - begun


def theirs(folder, device, kind, tokens, dry_run):
    model, load = seconds_of(lambda: transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, kind), attn_implementation="sdpa").to(device).eval(), device)
    ids = torch.tensor([PROMPT], device=device)

    def generate(count):
        with torch.no_grad():
            if dry_run:
                # Without kernels the number of steps would be arbitrary: it is read from the device.
                return model(input_ids=ids).logits.argmax(-1).tolist()
            return model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count,
                min_new_tokens=count, pad_token_id=0,
            )[0, len(PROMPT):].tolist()

    generate(min(tokens, 8))
    new, seconds = seconds_of(lambda: generate(tokens), device)
    return {"tokens": new, "seconds": seconds, "load": load}


def ours(folder, device, kind, tokens):
    command = [os.environ["LN_TUNING_GPU_CHECK"], "generate", str(folder), "--device", device, "--kind", kind]
    command += ["--tokens", str(tokens), "--prompt", ",".join(map(str, PROMPT))]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main():
    parser = shape_model.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options.model = shape_model.folder(options)
    tokens = 8 if options.dry_run else options.tokens
    print("| model, kind | ours, tokens/s | transformers eager | times | ours loads, s | transformers |")
    print("|---|--:|--:|--:|--:|--:|")
    differ = []
    for kind in ("float32", "bfloat16"):
        how = (options.model, options.device, kind, tokens)
        our, their = ours(*how), theirs(*how, options.dry_run)
        speeds = [tokens / side["seconds"] for side in (our, their)]
        print(
            f"| {options.model.name}, {kind} | {speeds[0]:.1f} | {speeds[1]:.1f} | {speeds[0] / speeds[1]:.2f} | "
            f"{our['load']:.2f} | {their['load']:.2f} |", flush=True,
        )
        if our["tokens"] != their["tokens"] and not options.dry_run:
            same = next(place for place, pair in enumerate(zip(our["tokens"], their["tokens"])) if pair[0] != pair[1])
            print(f"{kind}: the first {same} of {tokens} tokens are the same")
            # Rounding decides between tokens that are nearly as likely in bf16.
            differ += [kind] if kind == "float32" else []
    if differ:
        sys.exit("error: greedy text in f32 is not that of transformers")


main()
