"""PEFT's side of the checks: `theirs.py DIR --device cpu|cuda --kind float32,bfloat16,float16 --attention flash,math,cudnn`
computes for every model of `make_models.py` what `gpu_check` computes; `theirs.py DIR --reference` computes it in f64 on
the CPU. The results lie beside the model, an error in their place where one comes up."""

import argparse
import json
import os
import traceback
import warnings
from pathlib import Path

import torch
import transformers
from peft import LNTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

BACKENDS = {
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    "math": [SDPBackend.MATH],
}


class InDouble(TorchFunctionMode):
    """f64 wherever transformers asks for f32: in norms, softmax, rotary embeddings, losses."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def wide(value):
            return torch.float64 if value is torch.float32 else value

        if function is torch.Tensor.view:
            # The bytes of a file.
            return function(*args, **(kwargs or {}))
        function = torch.Tensor.double if function is torch.Tensor.float else function
        return function(*map(wide, args), **{key: wide(value) for key, value in (kwargs or {}).items()})


def load(folder, task, kind, attention):
    auto = getattr(transformers, task["auto"])
    try:
        return auto.from_pretrained(folder, dtype=kind, attn_implementation=attention)
    except ValueError:
        # Some families have eager attention alone.
        return auto.from_pretrained(folder, dtype=kind, attn_implementation="eager")


def given_of(inputs, case, device, kind):
    given = {key.split(".", 1)[1]: tensor for key, tensor in inputs.items() if key.startswith(case + ".")}
    # The documents say what to do, and stay where that is read.
    return {
        key: tensor if key == "documents" else tensor.to(device, kind if key == "pixel_values" else None)
        for key, tensor in given.items()
    }


def documents_of(given):
    """Each document of a packed batch as a row of its own, with its places."""
    for row, numbers in enumerate(given["documents"]):
        for number in numbers.unique().tolist():
            places = (numbers == number).nonzero()[:, 0]
            if number >= 0:
                yield row, places, {"input_ids": given["input_ids"][row, places][None]}


def output_of(model, task, inputs):
    result = model(**inputs)
    if task["hidden"]:
        return result.last_hidden_state
    return result.logits_per_image if hasattr(result, "logits_per_image") else result.logits


def next_tokens(logits, labels):
    """The sum over the targets, and their number."""
    wide = logits[:, :-1].float().flatten(0, 1)
    targets = labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(wide, targets, ignore_index=-100, reduction="sum"), (targets != -100).sum()


def forward(model, task, given):
    """The output, 0 at padding, and the loss."""
    given = dict(given)
    labels, shown = given.pop("labels", None), given.pop("shown", None)
    if "documents" in given:
        parts = [(row, places, output_of(model, task, inputs)) for row, places, inputs in documents_of(given)]
        output = parts[0][2].new_zeros(*given["documents"].shape, parts[0][2].shape[-1])
        sums = []
        for row, places, logits in parts:
            output[row, places] = logits[0].detach()
            sums.append(next_tokens(logits, labels[row, places][None]))
        return output, sum(total for total, _ in sums) / sum(count for _, count in sums)
    output = output_of(model, task, given)
    if task["language"]:
        total, count = next_tokens(output, labels)
        return output if shown is None else output * shown, total / count
    shown_output = output.float() if shown is None else output.float() * shown
    return shown_output, shown_output.square().mean()


def compute(model, task, inputs, device, kind):
    model.eval()
    trained = {
        name.replace("base_model.model.", "").replace("ln_tuning_layers.default.", ""): parameter
        for name, parameter in model.named_parameters() if task["target_modules"] and parameter.requires_grad
    }
    before = [parameter.detach().clone() for parameter in trained.values()]
    results = {}
    for case in task["cases"]:
        given = given_of(inputs, case, device, kind)
        output, loss = forward(model, task, given)
        results |= {f"{case}.output": output, f"{case}.loss": loss}
        if not trained:
            continue
        loss.backward()
        results |= {f"{case}.grad.{name}": parameter.grad.clone() for name, parameter in trained.items()}
        if case == task["trained"]:
            results |= {f"before.{name}": parameter.detach().clone() for name, parameter in trained.items()}
            optimizer = torch.optim.AdamW(trained.values(), lr=task["lr"], weight_decay=task["weight_decay"])
            optimizer.step()
            for _ in range(1, task["steps"]):
                optimizer.zero_grad()
                forward(model, task, given)[1].backward()
                optimizer.step()
            results |= {f"{case}.after.{name}": parameter.detach().clone() for name, parameter in trained.items()}
            with torch.no_grad():
                for parameter, old in zip(trained.values(), before):
                    parameter.copy_(old)
        model.zero_grad()
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in results.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--kind", default="float32", help="float32, bfloat16, float16, or several")
    parser.add_argument("--attention", default="flash")
    parser.add_argument("--reference", action="store_true")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    folders = sorted(path.parent for path in options.folder.glob("*/check.json"))
    ways = [(kind, attention) for kind in options.kind.split(",") for attention in options.attention.split(",")]
    for folder in folders:
        task = json.loads((folder / "check.json").read_text())
        inputs = load_file(folder / "inputs.safetensors")
        # Threads are in the way of tiny models, and of the processes beside this one.
        torch.set_num_threads(len(os.sched_getaffinity(0)) if options.reference and task["large"] else 1)
        for kind, attention in [("float64", "eager")] if options.reference else ways:
            name = "reference" if options.reference else f"theirs.{options.device}.{kind}.{attention}"
            kind = getattr(torch, kind)
            try:
                with InDouble() if options.reference else sdpa_kernel(BACKENDS[attention], set_priority=True):
                    eager = options.reference and task["eager"]
                    model = load(folder, task, kind, "eager" if eager else "sdpa").to(options.device)
                    if task["target_modules"]:
                        model = get_peft_model(model, LNTuningConfig(target_modules=task["target_modules"]))
                    save_file(compute(model, task, inputs, options.device, kind), folder / f"{name}.safetensors")
            except Exception:
                (folder / f"{name}.error").write_text(traceback.format_exc())
    print(len(folders), "models")


main()
