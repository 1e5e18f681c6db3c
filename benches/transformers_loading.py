"""`transformers_loading.py DIR THREADS DEVICE`: loads a causal LM; prints seconds and megabytes as JSON."""

import json
import sys
import time
import warnings

warnings.simplefilter("ignore")
start = time.perf_counter()
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: E402, F401

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(int(sys.argv[2]))
device = sys.argv[3]


def memory():
    lines = (line.split() for line in open("/proc/self/status"))
    kilobytes = {words[0]: int(words[1]) for words in lines if words[0] in ("RssAnon:", "RssFile:")}
    return kilobytes["RssAnon:"] / 1024, kilobytes["RssFile:"] / 1024


def on_device():
    """Megabytes that are taken on a GPU, as its driver counts."""
    if device == "cpu":
        return 0.0
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / (1 << 20)


taken = on_device()
imported = time.perf_counter()
before = memory()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").eval().to(device)
kept = on_device() - taken
loaded = time.perf_counter()
held = memory()
with torch.no_grad():
    logits = model(input_ids=torch.arange(16, device=device)[None]).logits
kept_after = on_device() - taken
first = time.perf_counter()
used = memory()
print(json.dumps({
    "import": imported - start, "load": loaded - imported, "first": first - imported,
    "private": held[0] - before[0], "shared": held[1] - before[1],
    "private_after": used[0] - before[0], "device": kept, "device_after": kept_after, "sum": float(logits.float().sum()),
}))
