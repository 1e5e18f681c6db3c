"""llama.cpp on a GGUF file.

`gguf_llama_cpp.py COUNT PROMPT FILE…`: greedy tokens after a prompt (a JSON list of token ids), for each file a
list of `[token, [[candidate, logprob], …]]`.
"""

import json
import sys

from llama_cpp import greedy

count, prompt, *files = sys.argv[1:]
found = []
for file in files:
    steps = greedy(file, json.loads(prompt), int(count), candidates=5)
    found.append([[s["id"], [[t["id"], t["logprob"]] for t in s["top_logprobs"]]] for s in steps])
print("\n" + json.dumps(found))
