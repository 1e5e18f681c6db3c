"""PEFT's side of benches/train_vs_peft: `peft_train.py TASK`, where TASK is the JSON of benches/train_vs_peft/task.rs.

Makes the model, attaches LN tuning and says so in a line of JSON. For every line "N" it makes training step N and
answers with its time in milliseconds and its loss (`generate`: generates, and gives the sum of the new tokens). For
"memory" it answers with megabytes: on a GPU what the process keeps there beside its context, as the driver counts
(`torch.cuda.mem_get_info`).
"""

import json
import sys
import time
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
task = json.loads(sys.argv[1])
batch, device, how = task["batch"], task["device"], task["how"]
rows, most, documents = batch["rows"], batch["length"], batch["documents"]

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LNTuningConfig, get_peft_model  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(task["threads"])
cuda = device != "cpu"
directory, kind = Path(task["dir"]), getattr(torch, task["kind"])


def used():
    if not cuda:
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def synchronize():
    if cuda:
        torch.cuda.synchronize()


def random_model():
    """The weights that ours.rs makes: a generator that is seeded for each of them, on the device."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory), dtype=kind)
    with torch.no_grad():
        for seed, (_, weight) in enumerate(sorted(model.named_parameters())):
            torch.manual_seed(seed)
            if weight.dim() == 1:
                weight.fill_(1.0)
            else:
                weight.normal_(0.0, 0.02)
    return model


before = used()
if batch["padded"]:
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=kind).to(device)
elif (directory / "model.gguf").exists():
    model = AutoModelForCausalLM.from_pretrained(directory, gguf_file="model.gguf", dtype=kind).to(device)
elif (directory / "model.safetensors").exists():
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=kind).to(device)
else:
    model = random_model()
model = get_peft_model(model, LNTuningConfig(task_type="SEQ_CLS" if batch["padded"] else "CAUSAL_LM"))
vocabulary = model.config.vocab_size
if how == "generate":
    model.eval()
else:
    model.train()
    if how == "checkpoint":
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
run = torch.compile(model) if how == "compile" else model


def ids(step):
    """Those of ours.rs, on the CPU."""
    length = most - step * 131 % (most // 3) if batch["varies"] else most
    index = torch.arange(rows * length) + step * 7919
    return ((index * index * 31 + index * 17) % vocabulary).view(rows, length)


def train(step):
    tokens = ids(step)
    labels, more = tokens.to(device), {}
    if batch["padded"]:
        row = torch.arange(rows)
        lengths = most - row * 37 % (most // 2)
        more["attention_mask"] = (torch.arange(most) < lengths[:, None]).long().to(device)
        labels = (row % 2).to(device)
    if documents:
        # Without a cache, transformers finds the documents where positions start again. No label crosses from one to
        # the next.
        more["use_cache"] = False
        positions = (torch.arange(tokens.shape[1]) % documents).expand(rows, -1)
        more["position_ids"] = positions.to(device)
        labels = tokens.masked_fill(positions == 0, -100).to(device)
    loss = run(input_ids=tokens.to(device), labels=labels, **more).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def generate(step):
    with torch.no_grad():
        tokens = ids(step).to(device)
        mask = torch.ones_like(tokens)
        new = model.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0
        )
        return new[:, tokens.shape[1]:].sum()


attention = str(model.config._attn_implementation)
if cuda:
    kinds = ("flash", "mem_efficient", "cudnn", "math")
    allowed = [kind for kind in kinds if getattr(torch.backends.cuda, f"{kind}_sdp_enabled")()]
    attention += f", of {', '.join(allowed)}"
print(json.dumps({
    "library": f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
    "device_name": torch.cuda.get_device_name() if cuda else None,
    "attention": attention,
    "weights": sum(p.numel() * p.element_size() for p in model.parameters()),
}), flush=True)
for line in sys.stdin:
    if line.strip() == "memory":
        print(max(used() - before, 0) / 1e6, flush=True)
        continue
    synchronize()
    begin = time.perf_counter()
    value = (generate if how == "generate" else train)(int(line))
    synchronize()
    took = (time.perf_counter() - begin) * 1e3
    print(took, float(value), flush=True)
