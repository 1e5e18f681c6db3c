"""Python's part of benches/distributed: the launcher's variables are set, and rank 0 prints JSON.

`all_reduce BYTES…`: the median seconds of an all-reduce by Gloo, a list. `steps MODEL ROUNDS`: the median milliseconds of
a training step of PEFT's LN tuning, of rank 0 while the others wait, and of all under DistributedDataParallel.
"""

import json
import statistics
import sys
import time

import torch
import torch.distributed as dist

# As in benches/distributed/rank.rs.
ROWS, LENGTH, BLOCK = 2, 128, 4


def all_reduce(*sizes):
    medians = []
    for size in map(int, sizes):
        tensor = torch.ones(size // 4)
        repetitions = max(5, min(100, 100_000_000 // size))
        times = []
        for _ in range(repetitions + 2):
            dist.barrier()
            tensor.fill_(1.0)
            begun = time.perf_counter()
            dist.all_reduce(tensor)
            times.append(time.perf_counter() - begun)
        assert tensor[-1] == dist.get_world_size()
        medians.append(statistics.median(times[2:]))
    return medians


def steps(folder, rounds):
    import warnings

    import transformers
    from peft import LNTuningConfig, get_peft_model
    from torch.nn.parallel import DistributedDataParallel

    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    index = torch.arange(ROWS * LENGTH) + dist.get_rank() * 7919
    ids = (index * index * 31).remainder(4096).view(ROWS, LENGTH)

    def training(together):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        model = get_peft_model(model, LNTuningConfig(task_type="CAUSAL_LM")).train()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        called = DistributedDataParallel(model) if together else model

        def step():
            optimizer.zero_grad()
            called(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()

        return step

    ways = {"alone": training(False), "reduced": training(True)}
    times = {name: [] for name in ways}
    for turn in range(int(rounds) + 1):
        for name, step in ways.items():
            dist.barrier()
            begun = time.perf_counter()
            for _ in range(BLOCK if name == "reduced" or dist.get_rank() == 0 else 0):
                step()
            # The first round warms up.
            if turn > 0:
                times[name].append((time.perf_counter() - begun) * 1e3 / BLOCK)
    dist.barrier()
    return {name: {"ms": statistics.median(all_of)} for name, all_of in times.items()}


torch.set_num_threads(1)
dist.init_process_group("gloo")
found = {"all_reduce": all_reduce, "steps": steps}[sys.argv[1]](*sys.argv[2:])
if dist.get_rank() == 0:
    print(json.dumps(found))
dist.destroy_process_group()
