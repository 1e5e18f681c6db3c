"""A Llama of transformers with LoRA adapters of PEFT, for benches/mixed_batches: `peft_mixed_batches.py THREADS NEW
SHAPE…`. `grow N` adds adapters up to N; `time ROWS LENGTH N` generates with rows that use N adapters in turn (0: one for
all) and answers with the seconds of the prefill and of the tokens behind the first."""

import sys
import time
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

warnings.simplefilter("ignore")
threads, new, hidden, inner, layers, heads, kv_heads, vocabulary = map(int, sys.argv[1:])
torch.set_num_threads(threads)
lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
model = LlamaForCausalLM(
    LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, max_position_embeddings=2048, eos_token_id=None,
        pad_token_id=0,
    )
)
model = get_peft_model(model, lora, adapter_name="a0").eval()


class Clock(LogitsProcessor):
    """Notes the time at which the logits of each token are there."""

    def __init__(self):
        self.times = []

    def __call__(self, ids, scores):
        self.times.append(time.perf_counter())
        return scores


def timed(rows, length, adapters):
    ids = torch.randint(vocabulary, (rows, length))
    names = {"adapter_names": [f"a{row % adapters}" for row in range(rows)]} if adapters else {}
    clock = Clock()
    start = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new,
            logits_processor=LogitsProcessorList([clock]), **names,
        )
    end = time.perf_counter()
    return f"{clock.times[0] - start} {end - clock.times[0]}"


print("ready", flush=True)
resident = 1
for line in sys.stdin:
    command, *numbers = line.split()
    numbers = [int(number) for number in numbers]
    if command == "grow":
        for number in range(resident, numbers[0]):
            model.add_adapter(f"a{number}", lora)
        resident = max(resident, numbers[0])
        model.eval()
        print("grown", flush=True)
    else:
        print(timed(*numbers), flush=True)
