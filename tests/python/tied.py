"""The Python half of tests/adapter/tied.rs.

`make DIR` writes, per case, a model with tied embeddings, an adapter of PEFT that has a part of them, and what PEFT
computes with it. `check DIR` loads what was merged, and the adapters that the Rust half wrote.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import LNTuningConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig, BartForConditionalGeneration, BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM,
    GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM, RobertaConfig, RobertaForMaskedLM, T5Config,
    T5ForConditionalGeneration,
)

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
SMALL = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=40)
KINDS = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)),
    "t5": (T5ForConditionalGeneration, T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)),
    "bart": (BartForConditionalGeneration, BartConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
    )),
    "bert": (BertForMaskedLM, BertConfig(**SMALL)),
    "roberta": (RobertaForMaskedLM, RobertaConfig(**SMALL)),
    "distilbert": (DistilBertForMaskedLM, DistilBertConfig(vocab_size=40, dim=16, hidden_dim=24, n_layers=1, n_heads=2)),
}
NORM = ["post_attention_layernorm"]
LAST = ["output.LayerNorm"]
# name -> arguments of LNTuningConfig; the name begins with that of the model
CASES = {
    "qwen2_input": dict(target_modules=NORM, modules_to_save=["embed_tokens"]),
    "qwen2_head": dict(target_modules=NORM, modules_to_save=["lm_head"]),
    "qwen2_both": dict(target_modules=NORM, modules_to_save=["lm_head", "embed_tokens"]),
    "qwen2_target_head": dict(target_modules=["model.norm", "lm_head"]),
    "qwen2_target_input": dict(target_modules=["post_attention_layernorm", "model.embed_tokens"]),
    "qwen2_neither": dict(target_modules=NORM),
    "gpt2_input": dict(target_modules=["ln_1"], modules_to_save=["wte"]),
    "gpt2_crossed": dict(target_modules=["ln_1", "lm_head"], modules_to_save=["wte"]),
    "t5_shared": dict(modules_to_save=["shared"]),
    "t5_head": dict(modules_to_save=["lm_head"]),
    "t5_inputs": dict(modules_to_save=["embed_tokens"]),
    "t5_decoder": dict(target_modules=["encoder.final_layer_norm"], modules_to_save=["decoder"]),
    "bart_shared": dict(modules_to_save=["shared"]),
    "bart_some": dict(modules_to_save=["decoder.embed_tokens", "lm_head"]),
    "bart_inputs": dict(target_modules=["final_layer_norm"], modules_to_save=["embed_tokens"]),
    "bert_words": dict(target_modules=LAST, modules_to_save=["word_embeddings"]),
    "bert_decoder": dict(target_modules=LAST, modules_to_save=["decoder"]),
    "bert_cls": dict(target_modules=LAST, modules_to_save=["cls"]),
    "bert_target": dict(target_modules=[*LAST, "predictions.decoder"]),
    "roberta_head": dict(target_modules=LAST, modules_to_save=["lm_head"]),
    "roberta_embeddings": dict(target_modules=LAST, modules_to_save=["roberta.embeddings"]),
    "distilbert_projector": dict(target_modules=["output_layer_norm"], modules_to_save=["vocab_projector"]),
}


def kind_of(case):
    return KINDS[case.split("_")[0]]


def inputs(case):
    ids = torch.tensor([[5, 3, 9, 2, 7, 30, 11, 4], [6, 3, 8, 39, 12, 21, 10, 13]])
    seq2seq = case.startswith(("t5", "bart"))
    return dict(input_ids=ids, decoder_input_ids=ids.flip(1)) if seq2seq else dict(input_ids=ids)


def logits(case, model):
    with torch.no_grad():
        return model.eval()(**inputs(case)).logits


def make(root):
    for number, (case, arguments) in enumerate(CASES.items()):
        kind, config = kind_of(case)
        folder = root / case
        torch.manual_seed(number)
        model = kind(config).eval()
        model.save_pretrained(folder / "base")
        with torch.no_grad():
            base = logits(case, model)
        tuned = get_peft_model(model, LNTuningConfig(**arguments)).eval()
        with torch.no_grad():
            for tensor in tuned.parameters():
                if tensor.requires_grad:
                    tensor.add_(torch.randn_like(tensor) * 0.3)
        tuned.save_pretrained(folder / "adapter")
        before = logits(case, tuned)
        facts = dict(zip(["trainable", "total"], tuned.get_nb_trainable_parameters()))
        (folder / "facts.json").write_text(json.dumps(facts))

        # One step of training.
        weights = [tensor for tensor in tuned.parameters() if tensor.requires_grad]
        optimizer = torch.optim.SGD(weights, 0.5)
        tuned.eval()(**inputs(case)).logits.square().mean().backward()
        optimizer.step()
        tuned.save_pretrained(folder / "stepped")
        result = dict(base=base, logits=before, stepped=logits(case, tuned))
        save_file({**inputs(case), **{name: x.contiguous() for name, x in result.items()}}, folder / "reference.st")


def check(root):
    for case in CASES:
        folder = root / case
        kind, _ = kind_of(case)
        expected = load_file(folder / "reference.st")["logits"]
        for merged in ["merged", "saved"]:
            model, info = kind.from_pretrained(folder / merged, output_loading_info=True)
            assert not info["missing_keys"] and not info["unexpected_keys"], (case, merged, info)
            difference = (logits(case, model) - expected).abs().max()
            assert difference <= 1e-6, (case, merged, difference)
        again = PeftModel.from_pretrained(kind.from_pretrained(folder / "base"), str(folder / "again"))
        assert torch.equal(logits(case, again), expected), case
        print(case, "ok")


{"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
