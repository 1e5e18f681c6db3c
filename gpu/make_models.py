"""`make_models.py DIR [--only SCRIPT[:CASE,…] …] [--shape 3b|small|none] [--device cpu|cuda]`: the models to check.

The tiny ones are those of tests/python, every family; the shape is that of Llama-3.2-3B with four layers. Weights are
rounded to numbers that f32, bf16 and f16 all hold, so that one reference in f64 serves the three. Beside each model lie
its inputs (inputs.safetensors) and what to do with them (check.json).
"""

import argparse
import json
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

TESTS = Path(os.environ.get("LN_TUNING_DATA") or Path(__file__).resolve().parent.parent) / "tests" / "python"
SCRIPTS = {"decoders": [], "encoders": ["make"], "seq2seq": [], "vision": [], "vit": []}
# A base model without a head, which our classifier does not open without labels.
LEFT_OUT = {"vit-plain-base"}
TRAINING = dict(steps=3, lr=1e-3, weight_decay=0.01)
SHAPES = {
    "3b": dict(hidden_size=3072, intermediate_size=8192, num_attention_heads=24, num_key_value_heads=8, vocab_size=128256),
    "small": dict(hidden_size=96, intermediate_size=160, num_attention_heads=6, num_key_value_heads=2, vocab_size=640),
}


def make_tiny(script, cases, folder):
    sys.argv = [script, *SCRIPTS[script], str(folder), *cases]
    runpy.run_path(str(TESTS / f"{script}.py"), run_name="__main__")


def make_shape(name, folder, device):
    torch.manual_seed(0)
    rope = dict(
        rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    config = transformers.LlamaConfig(
        **SHAPES[name], num_hidden_layers=4, head_dim=SHAPES[name]["hidden_size"] // SHAPES[name]["num_attention_heads"],
        tie_word_embeddings=True, rope_parameters=rope, max_position_embeddings=131072,
    )
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if "norm" in key:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    model.to("cpu").save_pretrained(folder)


def rounded(folder):
    """Rounds the weights in the files."""
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensors[name] = tensor.half().bfloat16().to(tensor.dtype)
        save_file(tensors, path, metadata={"format": "pt"})


def masks(batch, length):
    """Padding on either side: in the first row a little, in the second much."""
    for side in ("none", "right", "left"):
        mask = torch.ones(batch, length, dtype=torch.int64)
        few, many = length // 4, length * 2 // 3
        if side == "right":
            mask[0, -few:], mask[1, -many:] = 0, 0
        if side == "left":
            mask[0, :few], mask[1, :many] = 0, 0
        yield side, mask


def padded(ids, mask, padding):
    given = {"input_ids": torch.where(mask.bool(), ids, padding)}
    return given if mask.all() else given | {"attention_mask": mask}


def language(config, length, batch):
    ids = torch.randint(3, config.vocab_size, (batch, length))
    for side, mask in masks(batch, length):
        # The first token of a row is predicted by nothing, or by padding.
        first = mask.cumsum(1) == 1
        labels = torch.where(mask.bool() & ~first, ids, -100)
        yield side, padded(ids, mask, config.pad_token_id or 0) | {"labels": labels, "shown": mask[..., None].float()}
    # Documents of odd lengths, one of a single token, and padding behind them.
    length += 2
    ids = torch.randint(3, config.vocab_size, (2, length))
    documents = torch.zeros_like(ids)
    documents[0, length // 3 :], documents[0, length * 2 // 3 :], documents[0, -2:] = 1, 2, -1
    documents[1, 1:], documents[1, length // 2 :] = 1, 2
    real = documents >= 0
    labels, shown = torch.where(real, ids, -100), real[..., None].float()
    yield "packed", {"input_ids": torch.where(real, ids, 0), "documents": documents, "labels": labels, "shown": shown}


def encoder(config, head):
    # So many rows that the error of a few logits is no matter of luck.
    rows = 24 if head == "sequence" else 3
    ids = torch.randint(5, config.vocab_size, (rows, 11))
    for side, mask in masks(rows, 11):
        given = padded(ids, mask, 4 if config.pad_token_id is None else config.pad_token_id)
        if getattr(config, "type_vocab_size", 1) == 2:
            given["token_type_ids"] = torch.randint(0, 2, ids.shape)
        yield side, given if head == "sequence" else given | {"shown": mask[..., None].float()}


def encoder_decoder(config):
    ids = torch.randint(3, config.vocab_size, (3, 17))
    decoder_ids = torch.randint(3, config.vocab_size, (3, 13))
    decoder_ids[:, 0] = config.decoder_start_token_id
    for side, mask in masks(3, 17):
        yield side, padded(ids, mask, config.pad_token_id) | {"decoder_input_ids": decoder_ids}
    mask = torch.ones_like(decoder_ids)
    mask[2, 9:] = 0
    given = {"input_ids": ids, "decoder_input_ids": decoder_ids, "decoder_attention_mask": mask}
    yield "decoder", given | {"shown": mask[..., None].float()}


def images(config):
    vision = getattr(config, "vision_config", config)
    # So many that the error of a few logits is no matter of luck.
    shape = (24, vision.num_channels, vision.image_size, vision.image_size)
    given = {"pixel_values": torch.randn(shape).half().bfloat16().float()}
    if config.model_type == "clip":
        ids = torch.randint(3, 48, (4, 11))
        ids[:, -1] = 49
        given["input_ids"] = ids
    yield "none", given


def norms(folder, task):
    """The modules to tune: those whose class is a norm with weights, by the last parts of their names."""
    config = transformers.AutoConfig.from_pretrained(folder)
    auto = getattr(transformers, task["auto"])
    with torch.device("meta"):
        model = auto.from_config(config) if task["language"] else auto(config)
    found = set()
    for name, module in model.named_modules():
        if "Norm" in type(module).__name__ and next(module.parameters(recurse=False), None) is not None:
            parts = name.split(".")
            # The norms of the heads of one layer are numbered, as layers are.
            found.add(".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1])
    return sorted(found)


def prepare(folder, script):
    config = transformers.AutoConfig.from_pretrained(folder)
    head = folder.name.split("_", 1)[1].split("_", 1)[1] if script == "encoders" else ""
    (name,) = config.architectures
    task = {"language": script in ("decoders", "shape"), "hidden": head == "base" or name == "Dinov2Model"}
    task["large"] = config.model_type == "llama" and config.hidden_size > 1000
    task["auto"] = "AutoModelForCausalLM" if task["language"] else name
    torch.manual_seed(len(folder.name))
    if task["language"]:
        cases = dict(language(config, *((129, 2) if script == "shape" else (11, 3))))
    elif script == "encoders":
        cases = dict(encoder(config, head))
    elif script == "seq2seq":
        cases = dict(encoder_decoder(config))
    else:
        cases = dict(images(config))
    # Eager Falcon adds its bias twice; the fused way is the default.
    task["eager"] = folder.name != "decoders-falcon_alibi"
    activations = [value for key, value in config.to_dict().items() if "act" in key]
    task |= {"relu": "relu" in activations, "t5": config.model_type in ("t5", "mt5")}
    task |= TRAINING | {"target_modules": norms(folder, task), "cases": list(cases), "trained": "none"}
    tensors = {f"{case}.{key}": tensor.clone().contiguous() for case, given in cases.items() for key, tensor in given.items()}
    save_file(tensors, folder / "inputs.safetensors")
    (folder / "check.json").write_text(json.dumps(task, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=list(SCRIPTS), help="scripts of tests/python, with their cases or without")
    parser.add_argument("--shape", choices=[*SHAPES, "none"], default="none")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True)
    fork, made = multiprocessing.get_context("fork"), {}
    for entry in options.only:
        script, _, cases = entry.partition(":")
        folder = options.folder / "made" / script
        made[script] = fork.Process(target=make_tiny, args=(script, cases.split(",") if cases else [], folder))
        made[script].start()
    for script, process in made.items():
        process.join()
        if process.exitcode != 0:
            sys.exit(f"tests/python/{script}.py failed with {process.exitcode}")
        for folder in sorted((options.folder / "made" / script).iterdir()):
            name = f"{script}-{folder.name}"
            if name not in LEFT_OUT:
                folder = folder.rename(options.folder / name)
                rounded(folder)
                prepare(folder, script)
    if options.shape != "none":
        folder = options.folder / f"shape-{options.shape}"
        make_shape(options.shape, folder, options.device)
        rounded(folder)
        prepare(folder, "shape")
    print(len(list(options.folder.glob("*/check.json"))), "models")


main()
