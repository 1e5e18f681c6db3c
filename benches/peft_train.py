"""PEFT's side of benches/train_vs_peft: `peft_train.py MODEL_DIR KIND BATCH LENGTH DEVICE THREADS HOW`.

Loads the model, attaches LN tuning and says "ready". For every line "N" it makes training step N and answers with its
time in milliseconds and its loss (`generate`: generates, and gives the sum of the new tokens).
"""

import sys
import time
import warnings

warnings.simplefilter("ignore")
directory, kind, batch, length, device, threads, how = sys.argv[1:]
batch, length = int(batch), int(length)

import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LNTuningConfig, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(int(threads))
model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, kind)).to(device)
model = get_peft_model(model, LNTuningConfig(task_type="CAUSAL_LM"))
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
    """Those of ours.rs."""
    index = torch.arange(batch * length) + step * 7919
    return ((index * index * 31 + index * 17) % vocabulary).view(batch, length).to(device)


def train(step):
    tokens = ids(step)
    loss = run(input_ids=tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def generate(step):
    with torch.no_grad():
        tokens = ids(step)
        mask = torch.ones_like(tokens)
        new = model.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0
        )
        return new[:, length:].sum()


print("ready", flush=True)
for line in sys.stdin:
    begin = time.perf_counter()
    value = (generate if how == "generate" else train)(int(line))
    if device != "cpu":
        torch.cuda.synchronize()
    took = (time.perf_counter() - begin) * 1e3
    print(took, float(value), flush=True)
