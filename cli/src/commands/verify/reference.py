"""Makes a reference for `ln-tuning verify`: what transformers and PEFT compute, and what is exact.

    python reference.py MODEL OUT.safetensors [--adapter DIR] [--dtype float16] [--device cuda] [--steps 3]

MODEL is a directory, or a GGUF file. The reference has random inputs, or pictures (--image) for a model of images and
texts, and the model's outputs; with an adapter also the loss, its gradients and the weights after steps of AdamW. `exact.` stands before the same computed in f64, from weights in
the same dtype.
"""

import argparse
import os
import warnings

import torch
import transformers
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoConfig, AutoProcessor

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("out")
parser.add_argument("--adapter")
parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
parser.add_argument("--device", default="cpu")
parser.add_argument("--batch", type=int, default=2)
parser.add_argument("--length", type=int, default=11)
parser.add_argument("--steps", type=int, default=3)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--image", action="append", default=[])
args = parser.parse_args()

folder, source, kind = args.model, {}, None
if os.path.isfile(args.model):
    folder, source = os.path.dirname(args.model) or ".", {"gguf_file": os.path.basename(args.model)}
    kind = transformers.AutoModelForCausalLM
config = AutoConfig.from_pretrained(folder, **source)
kind = kind or getattr(transformers, config.architectures[0])
torch.manual_seed(args.seed)
shape = args.batch, args.length


def some_ids():
    return torch.randint(min(3, config.vocab_size - 1), config.vocab_size, shape)


def with_pictures():
    """A text about the pictures, or about random ones, as the processor makes inputs of both."""
    import numpy
    from PIL import Image

    random = numpy.random.default_rng(args.seed)
    noise = lambda: Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=numpy.uint8))
    images = [Image.open(path) for path in args.image] or [noise() for _ in range(args.batch)]
    processor = AutoProcessor.from_pretrained(folder)
    mark = getattr(processor, "boi_token", None) or processor.image_token
    text = (mark + "\n") * len(images) + "What is in the pictures?"
    return dict(processor(text=[text], images=[images], return_tensors="pt"))


# Some masks and labels are None: not all models take them.
inputs = {}
sees = any(hasattr(config, name) for name in ("image_token_index", "image_token_id"))
if sees:
    inputs = with_pictures()
elif hasattr(config, "image_size"):
    edges = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2
    inputs["pixel_values"] = torch.randn(args.batch, config.num_channels, *edges)
else:
    mask = torch.ones(shape, dtype=torch.int64)
    mask[0, args.length * 2 // 3 :] = 0
    padding = getattr(config, "pad_token_id", None) or 0
    inputs |= {"input_ids": some_ids().masked_fill(mask == 0, padding), "attention_mask": mask}
    if (getattr(config, "type_vocab_size", None) or 0) > 1:
        inputs["token_type_ids"] = torch.randint(0, 2, shape)
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = some_ids()


def some_labels(logits):
    if logits.dim() == 2:
        numbers = logits.shape[1] == 1
        return torch.randn(args.batch) if numbers else torch.randint(0, logits.shape[1], (args.batch,))
    labels = torch.randint(0, logits.shape[-1], logits.shape[:2])
    if not config.is_encoder_decoder:
        labels[inputs["attention_mask"] == 0] = -100
    return labels


def opened(exact):
    model = kind.from_pretrained(folder, dtype=getattr(torch, args.dtype), **source).to(args.device)
    model = model.double() if exact else model
    if args.adapter:
        model = PeftModel.from_pretrained(model, args.adapter, is_trainable=True)
    return model.eval()


def run(model, more={}):
    given = {name: tensor.to(args.device) for name, tensor in {**inputs, **more}.items()}
    if "pixel_values" in given:
        given["pixel_values"] = given["pixel_values"].to(model.dtype)
    return model(**given)


def loss_of(model):
    if "labels" in known:
        labels = known["labels"]
        return run(model, {"labels": labels.to(model.dtype) if labels.is_floating_point() else labels}).loss
    states = run(model).last_hidden_state
    wide = states if states.dtype == torch.float64 else states.float()
    return (wide * known["probe"].to(wide)).mean()


def name_of(parameter):
    for part in (".ln_tuning_layers.default", ".modules_to_save.default"):
        parameter = parameter.replace(part, "")
    return parameter.removeprefix("base_model.model.")


known, results = {}, {}
for before, exact in (("", False), ("exact.", True)):
    model = opened(exact)
    with torch.no_grad():
        output = run(model)
    name = "logits" if hasattr(output, "logits") else "last_hidden_state"
    results[before + name] = output[name]
    if not args.adapter:
        continue
    if not known:
        has_labels = name == "logits"
        known = {"labels": some_labels(output.logits)} if has_labels else {"probe": torch.randn(output[name].shape)}
        if "probe" in known and "attention_mask" in inputs and not config.is_encoder_decoder:
            known["probe"] *= inputs["attention_mask"].unsqueeze(-1)
    trained = {name_of(name): p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=args.lr)
    for step in range(args.steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        if step == 0:
            results[before + "loss"] = loss.detach()
            results |= {f"{before}gradients.{name}": p.grad.clone() for name, p in trained.items() if p.grad is not None}
        optimizer.step()
    results |= {f"{before}weights.{name}": p.detach() for name, p in trained.items()}

if args.adapter:
    known |= {"steps": torch.tensor(args.steps), "lr": torch.tensor(args.lr, dtype=torch.float64)}
if sees:
    # All tiles in a row; what else the processor gives follows from the ids and the pixels.
    names = ("input_ids", "attention_mask", "pixel_values", "image_sizes", "image_grid_thw")
    inputs = {name: inputs[name] for name in names if name in inputs}
    pixels = inputs["pixel_values"]
    if "image_sizes" in inputs:
        # Without the tiles that only fill up the batch.
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches as tiles_of

        grids, edge = config.image_grid_pinpoints, config.vision_config.image_size
        tiles = [tiles_of(size, grids, edge) for size in inputs["image_sizes"]]
        pixels = torch.cat([image[:count] for image, count in zip(pixels, tiles)])
    if "image_grid_thw" not in inputs:
        pixels = pixels.reshape(-1, *pixels.shape[-3:])
    inputs["pixel_values"] = pixels
everything = {**inputs, **known, **results}
save_file({name: tensor.cpu().contiguous().clone() for name, tensor in everything.items()}, args.out)
