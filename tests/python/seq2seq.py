"""`seq2seq.py DIR [--checkpoints]`: tiny random encoder-decoders of transformers: logits for both sides of padding, all
gradients, and what they generate greedily; or the directories alone."""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, CONFIG_MAPPING

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
VOCABULARY = 48
T5 = dict(
    vocab_size=VOCABULARY, d_model=24, d_kv=10, d_ff=40, num_layers=3, num_decoder_layers=2, num_heads=3,
    relative_attention_num_buckets=8, relative_attention_max_distance=20, decoder_start_token_id=0,
)
BART = dict(
    vocab_size=VOCABULARY, d_model=24, encoder_layers=3, decoder_layers=2, encoder_ffn_dim=40, decoder_ffn_dim=28,
    encoder_attention_heads=3, decoder_attention_heads=4, max_position_embeddings=40,
)
# Files as they were written before, or by another class: what becomes of the names on disk.
OLD = {
    "copies": lambda tensors, shared: tensors | {name: shared.clone() for name in (
        "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight",
    )} | {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(8, 3)},
    "head_only": lambda tensors, shared: {
        ("lm_head.weight" if name == "shared.weight" else name): tensor for name, tensor in tensors.items()
    },
    "bare": lambda tensors, shared: {
        name.removeprefix("model."): tensor for name, tensor in tensors.items() if name != "final_logits_bias"
    } | {"encoder.version": torch.ones(1), "encoder.embed_tokens.weight": shared.clone()},
}
CASES = {
    "t5": ("t5", {}),
    "t5_v1_1": ("t5", dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "t5_silu": ("t5", dict(feed_forward_proj="gated-silu", layer_norm_epsilon=1e-3)),
    "t5_copies": ("t5", {}),
    "t5_head_only": ("t5", {}),
    "mt5": ("mt5", dict(tie_word_embeddings=False)),
    "mt5_tied": ("mt5", {}),
    "bart": ("bart", {}),
    "bart_scaled": ("bart", dict(scale_embedding=True, activation_function="relu")),
    "bart_untied": ("bart", dict(tie_word_embeddings=False)),
    "bart_base_bare": ("bart", {}),
}


def left_mask(input_ids):
    mask = torch.ones_like(input_ids)
    mask[0, :3], mask[1, :17] = 0, 0
    return mask


def generate(model, eos, **inputs):
    tokens = model.generate(
        **inputs, do_sample=False, num_beams=1, max_new_tokens=32, eos_token_id=eos, pad_token_id=model.config.pad_token_id
    )
    return tokens[:, 1:].clone()


def generated(model, mask):
    """Tokens without an early end and with one, of inputs for which the model does not say one thing only."""
    for _ in range(40):
        inputs = dict(input_ids=torch.randint(3, VOCABULARY, mask.shape), attention_mask=mask)
        for eos in range(3, VOCABULARY):
            free = generate(model, eos, **inputs)
            if not (free == eos).any():
                break
        rows = free.tolist()
        ends = {token: [(row + [token]).index(token) for row in rows] for token in set(rows[0])}
        # Some rows end early, and not all at once.
        early = [token for token, at in ends.items() if 2 < min(at) < 20 and len(set(at)) > 1]
        if early and len(set(sum(rows, []))) > 6:
            result = {"free.ids": inputs["input_ids"], "free": free, "free.eos": torch.tensor([eos])}
            result["early"] = generate(model, [early[0], eos], **inputs)
            result["early.eos"] = torch.tensor([early[0], eos])
            assert (result["early"] == model.config.pad_token_id).any()
            return result
    raise AssertionError(f"the model repeats itself: {rows}")


for case, (model_type, arguments) in CASES.items():
    folder = Path(sys.argv[1]) / case
    torch.manual_seed(sum(map(ord, case)))
    config = CONFIG_MAPPING[model_type](**{**(BART if model_type == "bart" else T5), **arguments})
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        if arguments.get("tie_word_embeddings") is False and model_type != "bart":
            model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, 24))
        for name, tensor in model.named_parameters():
            # Weak embeddings and strong positions, or the model says one token again and again.
            if "shared" in name:
                tensor.mul_(0.3)
            matrix = 0.1 if model_type == "bart" and ("attn." in name or "fc" in name) else 0.3
            matrix = 0.08 if case == "bart_scaled" and "shared" in name else matrix
            # Scores of T5 are not scaled down, and large ones amplify rounding.
            matrix = 0.15 if ".q." in name or ".k." in name else matrix
            strong = 3 if "relative_attention_bias" in name else 1 if "embed_positions" in name else matrix
            tensor.add_(torch.randn_like(tensor) * strong)
        if model_type == "bart":
            model.final_logits_bias.add_(torch.randn_like(model.final_logits_bias) * 0.2)
    if case == "bart_scaled":
        model.generation_config.forced_bos_token_id = 5
    model.save_pretrained(folder)
    for kind, change in OLD.items():
        if case.endswith(kind):
            tensors = load_file(folder / "model.safetensors")
            shared = next(tensor for name, tensor in tensors.items() if name.endswith("shared.weight"))
            save_file(change(tensors, shared), folder / "model.safetensors", metadata={"format": "pt"})
            model, there = AutoModelForSeq2SeqLM.from_pretrained(
                folder, attn_implementation="eager", output_loading_info=True
            )
            model.eval()
            assert not there["missing_keys"], there
    # As on the hub, where the configuration does not say what is derived.
    if case == "t5_v1_1":
        fields = json.loads((folder / "config.json").read_text())
        for name in ("scale_decoder_outputs", "dense_act_fn", "is_gated_act"):
            del fields[name]
        fields["tie_word_embeddings"] = False
        (folder / "config.json").write_text(json.dumps(fields))
        again = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager").eval()
        assert again.config.scale_decoder_outputs is False and again.lm_head.weight is not again.shared.weight
        model = again

    if "--checkpoints" in sys.argv:
        continue
    input_ids = torch.randint(3, VOCABULARY, (3, 26))
    labels = torch.randint(3, VOCABULARY, (3, 24))
    labels[1, 20:] = -100
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    reference = {"input_ids": input_ids, "labels": labels, "decoder_input_ids": decoder_input_ids}
    reference |= generated(model, reference_mask := left_mask(input_ids))
    for side in ("right", "left", "none"):
        mask, decoder_mask = torch.ones_like(input_ids), torch.ones_like(labels)
        if side == "right":
            mask[0, 20:], mask[1, 4:], decoder_mask[2, 9:] = 0, 0, 0
        if side == "left":
            mask, decoder_mask[2, :5] = reference_mask, 0
        padded = dict(attention_mask=mask, decoder_attention_mask=decoder_mask) if side != "none" else {}
        model.zero_grad()
        logits = model(input_ids=input_ids, decoder_input_ids=decoder_input_ids, **padded).logits
        reference[f"{side}.mask"], reference[f"{side}.decoder_mask"] = mask, decoder_mask
        reference[f"{side}.logits"] = logits.detach().float()
        (logits * decoder_mask[..., None]).square().mean().backward()
        for name, tensor in model.named_parameters():
            # Tied to nothing and used for nothing.
            gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            reference[f"{side}.grad.{name}"] = gradient.float().clone()

    save_file(reference, folder / "reference.st")
