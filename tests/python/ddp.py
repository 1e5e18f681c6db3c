"""PEFT's LN tuning under torch's DistributedDataParallel in two processes, and in one: `ddp.py MODEL ROWS OUT PORT`.

ROWS has `ids` of shape (steps, rows, length) and labels of that shape, by the name of a way to train: `labels.NAME`. Rank 0
takes every second row of a step from the first on, rank 1 the others. OUT gets `NAME.ddp.losses`, the means over the ranks,
and the trained weights as `NAME.ddp.KEY`; `NAME.one.…` are those of one process with all rows.
"""

import os
import sys
import warnings

import torch
import torch.distributed as dist
import transformers
from peft import LNTuningConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

WORLD, LR, WEIGHT_DECAY, CLIP = 2, 1e-3, 0.1, 0.5


def train(folder, ids, labels, rank=None):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LNTuningConfig(task_type="CAUSAL_LM"))
    model.train()
    called = model if rank is None else DistributedDataParallel(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=WEIGHT_DECAY)
    own = slice(None) if rank is None else slice(rank, None, WORLD)
    losses = []
    for step_ids, step_labels in zip(ids, labels):
        optimizer.zero_grad()
        loss = called(input_ids=step_ids[own], labels=step_labels[own]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        losses.append(loss.detach())
    losses = torch.stack(losses)
    if rank is not None:
        dist.all_reduce(losses)
        losses /= WORLD
    return {"losses": losses, **{key: weight.detach().clone() for key, weight in get_peft_model_state_dict(model).items()}}


folder, rows, out, port = sys.argv[1:]
warnings.simplefilter("ignore")
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
rows = load_file(rows)
other = os.fork()
rank = int(other == 0)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
found = {}
for name, labels in rows.items():
    if name.startswith("labels."):
        way = name.removeprefix("labels.")
        found |= {f"{way}.ddp.{key}": tensor for key, tensor in train(folder, rows["ids"], labels, rank).items()}
        if rank == 0:
            found |= {f"{way}.one.{key}": tensor for key, tensor in train(folder, rows["ids"], labels).items()}
dist.destroy_process_group()
if rank == 1:
    os._exit(0)
_, status = os.waitpid(other, 0)
save_file(found, out)
sys.exit(os.waitstatus_to_exitcode(status))
