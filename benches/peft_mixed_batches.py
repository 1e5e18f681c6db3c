"""A Llama of transformers with LoRA adapters of PEFT, for benches/mixed_batches: `peft_mixed_batches.py TASK`, where TASK
is the JSON of benches/mixed_batches/task.rs. `grow N` loads adapters up to N and answers with the seconds; `time ROWS
LENGTH N NEW` generates NEW tokens with rows that use N adapters in turn (1: one for all; 0: the base without adapters) and
answers with the seconds of the prefill and of the tokens behind the first."""

import contextlib
import json
import sys
import tempfile
import time
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

warnings.simplefilter("ignore")
task = json.loads(sys.argv[1])
torch.set_num_threads(task["threads"])
now = time.process_time if task["cpu"] else time.perf_counter
config = LlamaConfig(**task["config"], eos_token_id=None, pad_token_id=0)
# PEFT's default targets of a llama are q_proj and v_proj.
lora = LoraConfig(r=8, target_modules=task["targets"], init_lora_weights=False)
model = LlamaForCausalLM(config).to(getattr(torch, task["kind"]))
model = get_peft_model(model, lora, adapter_name="a0").eval()


class Clock(LogitsProcessor):
    """Notes the time at which the logits of each token are there."""

    def __init__(self):
        self.times = []

    def __call__(self, ids, scores):
        self.times.append(now())
        return scores


def timed(rows, length, adapters, new):
    ids = torch.randint(config.vocab_size, (rows, length))
    names = {"adapter_names": [f"a{row % adapters}" for row in range(rows)]} if adapters > 1 else {}
    clock = Clock()
    start = now()
    with torch.inference_mode(), model.disable_adapter() if adapters == 0 else contextlib.nullcontext():
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new,
            logits_processor=LogitsProcessorList([clock]), **names,
        )
    end = now()
    return f"{clock.times[0] - start} {end - clock.times[0]}"


print("ready", flush=True)
resident = 1
for line in sys.stdin:
    command, *numbers = line.split()
    numbers = [int(number) for number in numbers]
    if command == "grow":
        with tempfile.TemporaryDirectory() as directory:
            model.save_pretrained(directory, selected_adapters=["a0"])
            start = now()
            for number in range(resident, numbers[0]):
                model.load_adapter(f"{directory}/a0", f"a{number}")
            seconds = now() - start
        resident = max(resident, numbers[0])
        model.eval()
        print(seconds, flush=True)
    else:
        print(timed(*numbers), flush=True)
