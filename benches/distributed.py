"""Times the all-reduce of Python's Gloo, for benches/distributed.rs: the launcher's variables are set, the arguments are
the bytes to reduce. Rank 0 prints a JSON list with the median seconds of each.
"""

import json
import statistics
import sys
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
medians = []
for size in map(int, sys.argv[1:]):
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
if dist.get_rank() == 0:
    print(json.dumps(medians))
dist.destroy_process_group()
