"""llama.cpp on a GGUF file.

`gguf_llama_cpp.py COUNT PROMPT FILE…`: greedy tokens after a prompt (a JSON list of token ids), for each file a
list of `[token, [[candidate, logprob], …]]`.
"""

import json
import sys

import xllamacpp

count, prompt, *files = sys.argv[1:]
found = []
for file in files:
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = 128
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    params.verbosity = -1
    server = xllamacpp.Server(params)
    asked = {
        "prompt": json.loads(prompt), "n_predict": int(count), "temperature": 0, "n_probs": 5, "ignore_eos": True,
        "cache_prompt": False,
    }
    answer = server.handle_completions(asked)
    steps = answer["choices"][0]["logprobs"]["content"]
    found.append([[s["id"], [[t["id"], t["logprob"]] for t in s["top_logprobs"]]] for s in steps])
print("\n" + json.dumps(found))
