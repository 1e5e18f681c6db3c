"""Times PEFT's adapter operations on the shapes of Llama-3.2-3B, for benches/adapters.rs.

Reads one operation per line and answers with its time in milliseconds, or with "ready". Frozen weights are tiny: no
operation on adapters touches them.
"""

import copy
import sys
import tempfile
import time
import warnings

start = time.perf_counter()
import torch  # noqa: E402
from peft import LNTuningConfig, get_peft_model  # noqa: E402
from peft.tuners.ln_tuning.layer import LNTuningLayer  # noqa: E402

imported = (time.perf_counter() - start) * 1e3
warnings.simplefilter("ignore")
torch.set_num_threads(int(sys.argv[1]))
LAYERS, SIZE = 28, 3072


def linears(*names):
    module = torch.nn.Module()
    for name in names:
        setattr(module, name, torch.nn.Linear(1, 1, bias=False))
    return module


def base():
    model = torch.nn.Module()
    model.model = linears("embed_tokens")
    model.model.layers = torch.nn.ModuleList()
    for _ in range(LAYERS):
        layer = torch.nn.Module()
        layer.self_attn = linears("q_proj", "k_proj", "v_proj", "o_proj")
        layer.mlp = linears("gate_proj", "up_proj", "down_proj")
        layer.input_layernorm = torch.nn.RMSNorm(SIZE)
        layer.post_attention_layernorm = torch.nn.RMSNorm(SIZE)
        model.model.layers.append(layer)
    model.model.norm = torch.nn.RMSNorm(SIZE)
    model.lm_head = torch.nn.Linear(1, 1, bias=False)
    return model.to(torch.bfloat16)


def config():
    return LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm", "norm"])


def attach():
    return get_peft_model(base(), config())


def timed(function, *arguments):
    begin = time.perf_counter()
    result = function(*arguments)
    return (time.perf_counter() - begin) * 1e3, result


folder = tempfile.TemporaryDirectory()
tuned, resident = attach(), 1
turn = 0
print(imported, flush=True)
for line in sys.stdin:
    operation = line.strip()
    took = "ready"
    if operation == "attach":
        fresh = base()
        took, _ = timed(get_peft_model, fresh, config())
    elif operation == "add":
        took, _ = timed(tuned.add_adapter, "extra", config())
        tuned.delete_adapter("extra")
    elif operation.startswith("resident "):
        wanted = int(operation.split()[1])
        # The state that add_adapter leaves behind, without its walks over all adapters: those make the thousandth take seconds.
        while resident < wanted:
            name = f"a{resident}"
            for layer in tuned.modules():
                if isinstance(layer, LNTuningLayer):
                    layer.ln_tuning_layers[name] = copy.deepcopy(layer.get_base_layer()).requires_grad_(False)
            tuned.base_model.peft_config[name] = config()
            resident += 1
    elif operation == "switch":
        turn += 1
        took, _ = timed(tuned.set_adapter, "default" if turn % 2 else "a1")
        if turn % 2 == 0:
            assert tuned.active_adapter == "a1"
    elif operation == "disable":
        def disable():
            with tuned.disable_adapter():
                pass
        took, _ = timed(disable)
    elif operation == "merge":
        def merge():
            tuned.merge_adapter()
            tuned.unmerge_adapter()
        tuned.set_adapter("default")
        took, _ = timed(merge)
    elif operation == "save":
        took, _ = timed(lambda: tuned.save_pretrained(folder.name, selected_adapters=["default"]))
    elif operation == "load":
        took, _ = timed(lambda: tuned.load_adapter(folder.name, "loaded", is_trainable=True))
        tuned.set_adapter("default")
        tuned.delete_adapter("loaded")
    else:
        sys.exit(f"unknown operation {operation}")
    print(took, flush=True)
