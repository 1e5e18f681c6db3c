"""Decoders of transformers without a language model's head, and one whose tied head is another in the file.

`decoder_heads.py make DIR`: tiny random checkpoints, what they compute for both sides of padding, and all gradients.
`decoder_heads.py logits DIR`: the logits of a classifier's directory, for the ids and the mask of `inputs.st`.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, CONFIG_MAPPING

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
TOKENS = dict(vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
SMALL = dict(
    TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
)
GPT2 = dict(TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=64)
OPT = dict(TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, max_position_embeddings=64)
LABELS = dict(id2label={0: "ham", 1: "spam", 2: "neither"}, label2id={"ham": 0, "spam": 1, "neither": 2})
SEQUENCE = AutoModelForSequenceClassification
CASES = {
    # The layout of e5-mistral: a base model's own files.
    "mistral_base": (AutoModel, "mistral", dict(SMALL, sliding_window=None)),
    # The layout of Qwen3-Embedding: they are a base model's, and the configuration names a language model.
    "qwen3_embedding": (AutoModelForCausalLM, "qwen3", dict(SMALL, head_dim=8, tie_word_embeddings=True)),
    "llama_sequence": (SEQUENCE, "llama", SMALL | LABELS),
    "llama_without_padding": (SEQUENCE, "llama", SMALL | LABELS | dict(pad_token_id=None)),
    # Padding is the token that ends texts, as it often is with GPT-2.
    "gpt2_sequence": (SEQUENCE, "gpt2", GPT2 | LABELS | dict(pad_token_id=2)),
    "opt_sequence": (SEQUENCE, "opt", OPT | LABELS),
    "opt_narrow_sequence": (SEQUENCE, "opt", OPT | LABELS | dict(word_embed_proj_dim=16, do_layer_norm_before=False)),
    # Trained apart from the embedding; since then the configuration says that they are tied.
    "llama_stale_head": (AutoModelForCausalLM, "llama", dict(SMALL, tie_word_embeddings=False)),
}


def computed(model, ids, mask):
    result = model(input_ids=ids, attention_mask=mask)
    if isinstance(model, SEQUENCES):
        return result.logits
    output = result.logits if hasattr(result, "logits") else result.last_hidden_state
    # Padding's own rows are nobody's business.
    return output * (1 if mask is None else mask[..., None])


def inputs(case, pad, side):
    ids = torch.randint(3, 64, (3, 11))
    mask = torch.ones_like(ids)
    if case == "llama_without_padding":
        return ids[:1], None
    if side == "right":
        mask[0, 8:], mask[1, 4:] = 0, 0
    if side == "left":
        mask[0, :3], mask[1, :7] = 0, 0
    ids[mask == 0] = pad
    if case == "gpt2_sequence":
        # The end of a text is a token of it.
        ids[0, 7], ids[2, 10] = 2, 2
    return ids, None if side == "none" else mask


def make(root):
    for number, (case, (auto, model_type, options)) in enumerate(CASES.items()):
        torch.manual_seed(number)
        folder = root / case
        config = CONFIG_MAPPING[model_type](**options)
        model = auto.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(torch.randn_like(tensor) * 0.2)
        model.save_pretrained(folder)
        fields = json.loads((folder / "config.json").read_text())
        if case == "qwen3_embedding":
            model.model.save_pretrained(folder)
            (folder / "config.json").write_text(json.dumps(fields))
        if case == "llama_stale_head":
            (folder / "config.json").write_text(json.dumps(fields | dict(tie_word_embeddings=True)))
        if case in ("qwen3_embedding", "llama_stale_head"):
            model = auto.from_pretrained(folder, attn_implementation="eager").eval()
        reference = {}
        for side in ("right", "left", "none"):
            ids, mask = inputs(case, config.pad_token_id, side)
            model.zero_grad()
            output = computed(model, ids, mask)
            output.square().mean().backward()
            reference |= {f"{side}.ids": ids, f"{side}.output": output.detach()}
            reference |= {} if mask is None else {f"{side}.mask": mask}
            reference |= {f"{side}.grad.{name}": tensor.grad for name, tensor in model.named_parameters()}
        if case == "qwen3_embedding":
            base = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
            reference["base"] = computed(base, ids, mask).detach()
        save_file({name: tensor.clone().contiguous() for name, tensor in reference.items()}, folder / "reference.st")


def logits(folder):
    model, info = SEQUENCE.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    given = load_file(folder / "inputs.st")
    output = model.eval()(input_ids=given["ids"], attention_mask=given["mask"]).logits.detach()
    save_file({"logits": output}, folder / "outputs.st")
    print(json.dumps([type(model).__name__, list(model.config.id2label.values())]))


SEQUENCES = tuple(SEQUENCE._model_mapping[type(CONFIG_MAPPING[kind]())] for kind in ("llama", "gpt2", "opt"))
{"make": make, "logits": logits}[sys.argv[1]](Path(sys.argv[2]))
