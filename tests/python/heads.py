"""The Python half of tests/adapter/heads.rs.

`make DIR` writes, per case, a base, an adapter that PEFT made for another class of the model, with a head of its own,
and what PEFT computes with it. `check DIR` loads what was merged into that class, or into the base's own.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import LNTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig, BertConfig, DebertaV2Config, DistilBertConfig, ElectraConfig, GPT2Config, LlamaConfig, ModernBertConfig,
    MPNetConfig, RobertaConfig, ViTConfig,
)

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
SMALL = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0)
TEXT = dict(SMALL, vocab_size=40)
BERT = BertConfig(**TEXT)
ROBERTA = RobertaConfig(**TEXT)
DISTIL = DistilBertConfig(vocab_size=40, dim=16, hidden_dim=24, n_layers=2, n_heads=2)
LLAMA = LlamaConfig(**TEXT, num_key_value_heads=2, tie_word_embeddings=True)
GPT2 = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
VIT = ViTConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=12, patch_size=3)
ELECTRA = ElectraConfig(**TEXT, embedding_size=8)
ALBERT, DEBERTA, MPNET = AlbertConfig(**TEXT, embedding_size=8), DebertaV2Config(**TEXT), MPNetConfig(**TEXT)
MODERN = ModernBertConfig(**TEXT, cls_token_id=1, sep_token_id=2)
SEQUENCE, TOKEN, ANSWER = dict(task_type="SEQ_CLS"), dict(task_type="TOKEN_CLS"), dict(task_type="QUESTION_ANS")
LN = dict(target_modules=["LayerNorm"])
# name -> (class of the base, configuration, class of the adapter's model, labels, arguments of LNTuningConfig)
CASES = {
    "bert_bare": ("BertModel", BERT, "BertForSequenceClassification", 3, {**SEQUENCE, **LN}),
    "bert_tokens": ("BertForMaskedLM", BERT, "BertForTokenClassification", 5, {**TOKEN, **LN}),
    "bert_answers": ("BertForMaskedLM", BERT, "BertForQuestionAnswering", 2, {**ANSWER, **LN}),
    "roberta": ("RobertaForMaskedLM", ROBERTA, "RobertaForSequenceClassification", 3, {**SEQUENCE, **LN}),
    "roberta_tokens": ("RobertaModel", ROBERTA, "RobertaForTokenClassification", 4, {**TOKEN, **LN}),
    "distilbert": (
        "DistilBertForMaskedLM", DISTIL, "DistilBertForSequenceClassification", 2,
        dict(SEQUENCE, target_modules=["output_layer_norm"]),
    ),
    "distilbert_labels": (
        "DistilBertForSequenceClassification", DISTIL, "DistilBertForSequenceClassification", 4,
        dict(SEQUENCE, target_modules=["output_layer_norm"]),
    ),
    "llama": ("LlamaForCausalLM", LLAMA, "LlamaForSequenceClassification", 3, SEQUENCE),
    "llama_tokens": ("LlamaModel", LLAMA, "LlamaForTokenClassification", 3, TOKEN),
    "gpt2": ("GPT2LMHeadModel", GPT2, "GPT2ForSequenceClassification", 3, SEQUENCE),
    "vit": (
        "ViTModel", VIT, "ViTForImageClassification", 3,
        dict(target_modules=["layernorm_before", "layernorm"], modules_to_save=["classifier"]),
    ),
    "electra": ("ElectraForMaskedLM", ELECTRA, "ElectraForSequenceClassification", 3, {**SEQUENCE, **LN}),
    "electra_pretrained": ("ElectraForPreTraining", ELECTRA, "ElectraForTokenClassification", 3, {**TOKEN, **LN}),
    "albert": ("AlbertModel", ALBERT, "AlbertForSequenceClassification", 3, {**SEQUENCE, **LN}),
    "albert_answers": ("AlbertForMaskedLM", ALBERT, "AlbertForQuestionAnswering", 2, {**ANSWER, **LN}),
    "deberta": (
        "DebertaV2ForMaskedLM", DEBERTA, "DebertaV2ForSequenceClassification", 3,
        dict(SEQUENCE, modules_to_save=["pooler"], **LN),
    ),
    "deberta_tokens": ("DebertaV2Model", DEBERTA, "DebertaV2ForTokenClassification", 3, {**TOKEN, **LN}),
    "mpnet": ("MPNetForMaskedLM", MPNET, "MPNetForSequenceClassification", 3, {**SEQUENCE, **LN}),
    "modernbert": (
        "ModernBertForMaskedLM", MODERN, "ModernBertForSequenceClassification", 3,
        dict(SEQUENCE, target_modules=["mlp_norm"]),
    ),
    # Without a head of its own: the names differ.
    "llama_headless": ("LlamaForCausalLM", LLAMA, "LlamaModel", 0, {}),
    "gpt2_headless": ("GPT2LMHeadModel", GPT2, "GPT2Model", 0, dict(modules_to_save=["wpe"])),
    "llama_headed": ("LlamaModel", LLAMA, "LlamaForCausalLM", 0, dict(task_type="CAUSAL_LM")),
}


def inputs(case):
    if case.startswith("vit"):
        torch.manual_seed(1)
        return dict(pixel_values=torch.randn(2, 3, 12, 12))
    ids = torch.tensor([[5, 3, 9, 2, 7, 30, 11, 4], [6, 3, 8, 39, 12, 21, 10, 13]])
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids))


def output(case, model):
    with torch.no_grad():
        result = model.eval()(**inputs(case))
    for name in ["logits", "start_logits", "last_hidden_state"]:
        if name in result:
            return result[name]


def make(root):
    for number, (case, (base, config, kind, labels, arguments)) in enumerate(CASES.items()):
        torch.manual_seed(number)
        folder = root / case
        model = getattr(transformers, base)(config)
        model.save_pretrained(folder / "base", max_shard_size="10KB" if number % 2 else "1GB")
        more = dict(num_labels=labels, ignore_mismatched_sizes=True) if labels else {}
        model = getattr(transformers, kind).from_pretrained(folder / "base", **more)
        tuned = get_peft_model(model, LNTuningConfig(**arguments)).eval()
        with torch.no_grad():
            for tensor in tuned.parameters():
                if tensor.requires_grad:
                    tensor.add_(torch.randn_like(tensor) * 0.3)
        tuned.save_pretrained(folder / "adapter")
        save_file({**inputs(case), "output": output(case, tuned).contiguous()}, folder / "reference.st")


def check(root):
    for case, (_, _, kind, labels, _) in CASES.items():
        folder = root / case
        config = json.loads((folder / "merged" / "config.json").read_text())
        if labels:
            assert config["architectures"] == [kind], (case, config)
            named = len(config.get("id2label") or "ab")
            assert kind.endswith("Answering") or named == labels, (case, config)
        else:
            assert config == json.loads((folder / "base" / "config.json").read_text()), case
        model, info = getattr(transformers, kind).from_pretrained(folder / "merged", output_loading_info=True)
        assert not info["missing_keys"] and not info["mismatched_keys"], (case, info)
        assert labels == 0 or not info["unexpected_keys"], (case, info)
        difference = (output(case, model) - load_file(folder / "reference.st")["output"]).abs().max()
        assert difference <= 1e-6, (case, difference)
        print(case, "ok")


{"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
