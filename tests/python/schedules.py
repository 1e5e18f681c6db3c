"""The factors of transformers' schedules, as [[name, warm-up, total, factors], …]."""

import json
import warnings

warnings.simplefilter("ignore")
import torch  # noqa: E402
from transformers import get_scheduler  # noqa: E402

rows = []
for name in ["constant_with_warmup", "linear", "cosine"]:
    for warmup, total in [(0, 10), (3, 10), (10, 10), (7, 50)]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
        factors = []
        for _ in range(total + 1):
            factors.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        rows.append([name, warmup, total, factors])
print(json.dumps(rows))
