"""llama.cpp on a GGUF file, on one thread, for the scripts beside this one."""

import xllamacpp


def greedy(file, prompt, count, candidates=1):
    """`count` steps after a prompt of token ids, whatever ends a text: each with its token and the likeliest ones."""
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = 128
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    params.verbosity = -1
    asked = {
        "prompt": prompt, "n_predict": count, "temperature": 0, "n_probs": candidates, "ignore_eos": True,
        "cache_prompt": False,
    }
    answer = xllamacpp.Server(params).handle_completions(asked)
    assert "choices" in answer, answer
    return answer["choices"][0]["logprobs"]["content"]
