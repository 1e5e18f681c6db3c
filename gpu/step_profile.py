"""`step_profile.py MODEL --library FILE --shape 3b|small --device cpu|cuda`: a training step in bf16, kernel by kernel.

torch.profiler records what this process does: PEFT's steps, then ours, which the library makes. The tables name the
kernels that take longest; traces for a browser (chrome://tracing) lie in the working directory.
"""

import ctypes
import sys
import time
import warnings

import torch
import transformers
from peft import LNTuningConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile

import shape_model

WARM_UP, STEPS = 3, 3


def peft_step(folder, device, batch, length):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device)
    model = get_peft_model(model, LNTuningConfig(task_type="CAUSAL_LM")).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
    labels = (torch.arange(batch * length) * 7919 % model.config.vocab_size).view(batch, length)

    def step():
        ids = labels.to(device)
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step(library, folder, device, batch, length):
    library.ln_tuning_step.argtypes = [ctypes.c_int64, ctypes.c_int64]

    def checked(status):
        if status != 0:
            sys.exit("error: see above")

    checked(library.ln_tuning_open(str(folder).encode(), int(device == "cuda")))
    return lambda: checked(library.ln_tuning_step(batch, length))


def measured(name, step, device, shown):
    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(WARM_UP):
        step()
    wait()
    begun = time.perf_counter()
    for _ in range(STEPS):
        step()
    wait()
    milliseconds = (time.perf_counter() - begun) * 1e3 / STEPS
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=kinds) as profiler:
        for _ in range(STEPS):
            step()
        wait()
    profiler.export_chrome_trace(f"{name}.json")
    # The work of the device, or, where it cannot be traced, the calls that made it do so.
    rows, calls = [], []
    for event in profiler.key_averages():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            rows.append((event.self_device_time_total / 1e3 / STEPS, event.count / STEPS, event.key))
        else:
            calls.append((event.self_cpu_time_total / 1e3 / STEPS, event.count / STEPS, event.key))
    rows = rows or calls
    rows.sort(reverse=True)
    total = sum(row[0] for row in rows) or 1.0
    print(f"| {name}: {milliseconds:.1f} ms a step without the profiler | calls | ms | share |")
    print("|---|--:|--:|--:|")
    for taken, calls, key in rows[:shown]:
        key = key.replace("|", "/")
        print(f"| `{key[: 6 * shown]}` | {calls:.0f} | {taken:.2f} | {100 * taken / total:.0f} % |")
    print(f"| all | {sum(row[1] for row in rows):.0f} | {total:.2f} | |", flush=True)


def main():
    parser = shape_model.parser(__doc__)
    parser.add_argument("--library", required=True)
    parser.add_argument("--rows", type=int, default=15, help="kernels that the tables show")
    parser.add_argument("--ours-only", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    batch, length = (4, 768) if options.shape == "3b" else (2, 32)
    options.model = shape_model.folder(options)
    how = (options.model, options.device, batch, length)
    if not options.ours_only:
        measured("PEFT", peft_step(*how), options.device, options.rows)
    measured("ours", our_step(ctypes.CDLL(options.library), *how), options.device, options.rows)


main()
