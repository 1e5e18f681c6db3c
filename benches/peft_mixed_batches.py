"""A Llama of transformers with LoRA adapters of PEFT, for benches/mixed_batches: `peft_mixed_batches.py TASK`, where TASK
is the JSON of benches/mixed_batches/task.rs. It says that it is ready, and makes the model at the first command. `grow N`
loads adapters up to N and answers with the seconds; `time ROWS LENGTH N NEW` generates NEW tokens with rows that use N
adapters in turn (1: one for all; 0: the base without adapters) and answers with the seconds of the prefill and of the
tokens behind the first. A fault is answered with `error: …`."""

import sys

# Libraries may print something of their own.
answers, sys.stdout = sys.stdout, sys.stderr


def answer(text):
    print(text, file=answers, flush=True)


def end(kind, error, trace):
    sys.__excepthook__(kind, error, trace)
    answer(f"error: {kind.__name__}: " + " ".join(str(error).split()))


sys.excepthook = end

import contextlib  # noqa: E402
import json  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, LogitsProcessor, LogitsProcessorList  # noqa: E402

warnings.simplefilter("ignore")
task = json.loads(sys.argv[1])
torch.set_num_threads(task["threads"])
now = time.process_time if task["cpu"] else time.perf_counter
device = task["device"]
config = LlamaConfig(**task["config"], eos_token_id=None, pad_token_id=0)


def synchronize():
    if device != "cpu":
        torch.cuda.synchronize()


def made():
    # PEFT's default targets of a llama are q_proj and v_proj.
    lora = LoraConfig(r=8, target_modules=task["targets"], init_lora_weights=False)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, task["kind"]))
    return get_peft_model(model, lora, adapter_name="a0").eval()


class Clock(LogitsProcessor):
    """Notes the time at which the logits of the first token are there."""

    def __init__(self):
        self.first = None

    def __call__(self, ids, scores):
        if self.first is None:
            synchronize()
            self.first = now()
        return scores


def timed(model, rows, length, adapters, new):
    ids = torch.randint(config.vocab_size, (rows, length)).to(device)
    names = {"adapter_names": [f"a{row % adapters}" for row in range(rows)]} if adapters > 1 else {}
    clock = Clock()
    synchronize()
    start = now()
    with torch.inference_mode(), model.disable_adapter() if adapters == 0 else contextlib.nullcontext():
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new,
            logits_processor=LogitsProcessorList([clock]), **names,
        )
    synchronize()
    end = now()
    return f"{clock.first - start} {end - clock.first}"


def grown(model, resident, wanted):
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory, selected_adapters=["a0"])
        synchronize()
        start = now()
        for number in range(resident, wanted):
            model.load_adapter(f"{directory}/a0", f"a{number}")
        synchronize()
        seconds = now() - start
    model.eval()
    return seconds


answer("ready")
model, resident = None, 1
for line in sys.stdin:
    if model is None:
        model = made()
    command, *numbers = line.split()
    numbers = [int(number) for number in numbers]
    if command == "grow":
        answer(grown(model, resident, numbers[0]))
        resident = max(resident, numbers[0])
    else:
        answer(timed(model, *numbers))
