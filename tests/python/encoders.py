"""Tiny random text encoders of transformers, with what they compute.

`encoders.py make DIR [--checkpoints]`: a checkpoint for each family and head, with outputs for both sides of padding and
all gradients, or alone.
`encoders.py load DIR`: loads a checkpoint with the head of its config and writes its logits; prints what did not fit.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModel

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.set_grad_enabled(True)

BERT = dict(
    vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
    max_position_embeddings=20,
)
DISTILBERT = dict(vocab_size=50, dim=24, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=20)
FAMILIES = {
    "bert": dict(BERT, hidden_act="gelu_new", layer_norm_eps=1e-3, classifier_dropout=0.3),
    "roberta": dict(BERT, type_vocab_size=1, hidden_act="relu"),
    "xlm-roberta": dict(BERT, pad_token_id=3),
    "distilbert": DISTILBERT,
}
HEADS = {
    "base": "AutoModel",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
}
CASES = [(family, head, {}) for family in FAMILIES for head in HEADS] + [
    ("bert", "masked_lm", dict(tie_word_embeddings=False)),
    ("distilbert", "masked_lm", dict(tie_word_embeddings=False, activation="relu")),
    ("bert", "sequence", dict(pad_token_id=None, num_labels=1)),
]
DROPOUTS = [
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "attention_dropout",
    "seq_classif_dropout",
]


def outputs(model, head, ids, mask, types):
    """The outputs that are compared: hidden states without the rows of padding, or logits."""
    arguments = dict(input_ids=ids) | ({} if mask is None else dict(attention_mask=mask))
    arguments |= {} if types is None else dict(token_type_ids=types)
    result = model(**arguments)
    shown = 1 if mask is None else mask[..., None]
    if head == "base":
        pooled = getattr(result, "pooler_output", None)
        return {"hidden": result.last_hidden_state * shown} | ({} if pooled is None else {"pooled": pooled})
    return {"logits": result.logits if head == "sequence" else result.logits * shown}


def inputs(config, side):
    ids = torch.randint(5, 50, (3, 11))
    mask = torch.ones_like(ids)
    if side == "right":
        mask[0, 8:], mask[1, 4:] = 0, 0
    if side == "left":
        mask[0, :3], mask[1, :7] = 0, 0
    padding = 4 if config.pad_token_id is None else config.pad_token_id
    ids[mask == 0] = padding
    # A padding id among the tokens: its embedding has no gradient.
    ids[2, 5] = padding
    types = torch.randint(0, 2, ids.shape) if getattr(config, "type_vocab_size", 1) == 2 else None
    return ids, None if side == "none" else mask, types if side != "right" else None


def make(root):
    for number, (family, head, options) in enumerate(CASES):
        torch.manual_seed(number)
        folder = root / f"{number:02}_{family}_{head}"
        config = CONFIG_MAPPING[family](**{**FAMILIES[family], "num_labels": 4, **options})
        model_class = getattr(transformers, HEADS[head])
        model = model_class.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(torch.randn_like(tensor) * 0.3)
        model.save_pretrained(folder)
        if "--checkpoints" in sys.argv:
            continue
        reference = {}
        for side in ("right", "left", "none"):
            ids, mask, types = inputs(config, side)
            given = {"input_ids": ids, "mask": mask, "types": types}
            model.zero_grad()
            computed = outputs(model, head, ids, mask, types)
            sum(tensor.square().mean() for tensor in computed.values()).backward()
            gradients = {f"grad.{name}": tensor.grad for name, tensor in model.named_parameters()}
            for name, tensor in (given | computed | gradients).items():
                if tensor is not None:
                    reference[f"{side}.{name}"] = tensor.detach().clone().contiguous()
        # As transformers loads this checkpoint without its head.
        base = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
        reference["base_of_it"] = outputs(base, "base", ids, mask, types)["hidden"].detach().contiguous()
        # One dropout after the other drops everything, and the others nothing.
        if head in ("sequence", "token"):
            for key in DROPOUTS:
                if not hasattr(config, key):
                    continue
                for other in DROPOUTS:
                    if hasattr(config, other):
                        setattr(config, other, float(other == key))
                dropped = model_class.from_pretrained(folder, config=config, attn_implementation="eager").train()
                reference[f"dropped.{key}"] = outputs(dropped, head, ids, mask, types)["logits"].detach()
        save_file(reference, folder / "reference.st")


def load(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    model, info = getattr(transformers, config.architectures[0]).from_pretrained(folder, output_loading_info=True)
    given = load_file(folder / "inputs.st")
    save_file({"logits": model.eval()(**given).logits.detach()}, folder / "outputs.st")
    left = {key: sorted(map(str, value)) for key, value in info.items() if value}
    print(json.dumps({"left": left, "id2label": config.id2label, "label2id": config.label2id}))


{"make": make, "load": load}[sys.argv[1]](Path(sys.argv[2]))
