"""The Python half of tests/naming.rs.

`names DIR` writes, for further model types of our table, a file with the names of each class, and what transformers makes
of these names in each other class. `make DIR` writes tiny checkpoints of transformers, as they are saved and as older or other software leaves them. For each
class that loads one, `DIR/<case>/<head>` holds the variables of the live model, an adapter that PEFT trained on it, and
what PEFT's merge makes of both. `check DIR` loads the directories that the Rust half merged into the class of
`architectures`.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from architectures import NEEDED, shrink
from peft import LNTuningConfig, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING as TABLE
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")
torch.set_num_threads(1)

LLAMA = dict(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, pad_token_id=0,
)
GPT2 = dict(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=12, pad_token_id=0)
BERT = dict(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=20,
)
T5 = dict(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
BART = dict(
    vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=20,
)
IMAGE = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4)
TOWER = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
CONFIGS = {
    "llama": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "mistral": LLAMA, "gemma": LLAMA, "phi": LLAMA, "smollm3": LLAMA,
    "gpt2": GPT2, "gptj": GPT2 | dict(rotary_dim=4),
    "gpt_neox": BERT, "bloom": dict(vocab_size=40, hidden_size=16, n_layer=2, n_head=2),
    "falcon": dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2),
    "opt": dict(
        vocab_size=40, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24,
        max_position_embeddings=20,
    ),
    "bart": BART, "t5": T5, "mt5": T5,
    "bert": BERT, "roberta": BERT, "xlm-roberta": BERT,
    "distilbert": dict(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=20),
    "vit": IMAGE, "dinov2": IMAGE,
    "clip": dict(
        text_config=TOWER | dict(vocab_size=40, max_position_embeddings=12),
        vision_config=TOWER | dict(image_size=8, patch_size=4), projection_dim=8,
    ),
    "siglip": dict(
        text_config=TOWER | dict(vocab_size=40, max_position_embeddings=12),
        vision_config=TOWER | dict(image_size=8, patch_size=4),
    ),
    "siglip_vision_model": TOWER | dict(image_size=8, patch_size=4),
    "clip_text_model": TOWER | dict(vocab_size=40, max_position_embeddings=12),
    "clip_vision_model": TOWER | dict(image_size=8, patch_size=4),
}

AUTO = {
    "None": "AutoModel", "LanguageModel": "AutoModelForCausalLM", "MaskedLm": "AutoModelForMaskedLM",
    "SequenceClassification": "AutoModelForSequenceClassification",
    "TokenClassification": "AutoModelForTokenClassification", "QuestionAnswering": "AutoModelForQuestionAnswering",
    "ImageClassification": "AutoModelForImageClassification", "Other": "AutoModelForPreTraining",
}
BASE, LM, MASKED, SEQUENCE, TOKEN, ANSWER, IMAGES, OTHER = AUTO
TEXT = [BASE, MASKED, SEQUENCE, TOKEN, ANSWER]
DECODER = [BASE, LM, SEQUENCE, TOKEN]


def class_of(model_type, head):
    config = CONFIG_MAPPING[model_type]()
    seq2seq = head == LM and getattr(config, "is_encoder_decoder", False)
    return getattr(transformers, "AutoModelForSeq2SeqLM" if seq2seq else AUTO[head])._model_mapping[type(config)]


def bare(tensors):
    """Without the base model's prefix."""
    return {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}


def below(module):
    """As former versions saved the towers of CLIP."""
    return lambda tensors: {f"{module}.{key}": tensor for key, tensor in tensors.items()}


def masks(tensors):
    """Buffers that former versions saved."""
    layers = ["h.0.attn", "h.1.attn"]
    extra = {f"{layer}.bias": torch.ones(1, 1, 12, 12).tril().bool() for layer in layers}
    return tensors | extra | {f"{layer}.masked_bias": torch.tensor(-1e4) for layer in layers}


def positions(tensors):
    kept = {key.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for key, tensor in tensors.items()}
    kept = {key.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for key, tensor in kept.items()}
    return kept | {"bert.embeddings.position_ids": torch.arange(20)[None]}


def also(copy, original, factor=1.0):
    """A tied tensor under a second name, equal or not."""
    return lambda tensors: tensors | {copy: tensors[original] * factor}


def moved(copy, original):
    """A tied tensor under the name of its copy alone."""
    return lambda tensors: {copy if key == original else key: tensor for key, tensor in tensors.items()}


WORDS, EMBED = "embeddings.word_embeddings.weight", "model.embed_tokens.weight"
TIED = dict(tie_word_embeddings=True)
# name -> (model type, further configuration, head it is saved with, head in `architectures`, changes of the file, heads
# it is loaded with)
CASES = {
    "llama_base": ("llama", {}, BASE, BASE, None, DECODER + [ANSWER]),
    "llama_lm": ("llama", {}, LM, LM, None, DECODER),
    "llama_lm_without_architectures": ("llama", {}, LM, "", None, DECODER),
    "llama_inv_freq": (
        "llama", {}, LM, LM, lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, [BASE, LM],
    ),
    "llama_classifier": ("llama", {}, SEQUENCE, SEQUENCE, None, DECODER),
    # The layout of Qwen3-Embedding.
    "qwen3_embedding": ("qwen3", TIED, BASE, LM, None, DECODER),
    "qwen3_lm": ("qwen3", {}, LM, LM, None, [BASE, LM]),
    "qwen2_lm": ("qwen2", TIED, LM, LM, None, [BASE, LM]),
    # The layout of e5-mistral.
    "mistral_base": ("mistral", {}, BASE, BASE, None, DECODER + [ANSWER]),
    "gemma_lm": ("gemma", {}, LM, LM, None, DECODER),
    "phi_lm": ("phi", {}, LM, LM, None, DECODER),
    "smollm3_base": ("smollm3", {}, BASE, BASE, None, DECODER),
    # The layout of gpt2.
    "gpt2_old": ("gpt2", {}, LM, LM, lambda t: masks(bare(t)), DECODER + [ANSWER]),
    "gpt2_two_heads": ("gpt2", {}, LM, LM, also("lm_head.weight", "transformer.wte.weight"), DECODER),
    "gptj_lm": ("gptj", {}, LM, LM, None, [BASE, LM, SEQUENCE]),
    "gpt_neox_base": ("gpt_neox", {}, BASE, BASE, None, DECODER),
    "bloom_base": ("bloom", {}, BASE, LM, None, DECODER),
    "falcon_lm": ("falcon", {}, LM, LM, None, DECODER),
    "opt_base": ("opt", {}, BASE, LM, None, [BASE, LM, SEQUENCE]),
    "bart_base": (
        "bart", {}, BASE, BASE, lambda t: t | {"encoder.version": torch.ones(1)}, [BASE, LM, SEQUENCE, ANSWER],
    ),
    "bart_lm": ("bart", {}, LM, LM, None, [BASE, LM, SEQUENCE, ANSWER]),
    "bart_copies": (
        "bart", {}, LM, LM, moved("model.encoder.embed_tokens.weight", "model.shared.weight"), [BASE, LM],
    ),
    "t5_base": ("t5", {}, BASE, BASE, None, [BASE, LM, SEQUENCE, TOKEN]),
    "t5_lm": ("t5", {}, LM, LM, also("decoder.embed_tokens.weight", "shared.weight"), [BASE, LM, SEQUENCE, TOKEN]),
    "t5_own_head": ("t5", dict(tie_word_embeddings=False), LM, LM, also("lm_head.weight", "shared.weight", 2), [BASE, LM]),
    "mt5_lm": ("mt5", {}, LM, LM, None, [BASE, LM]),
    "bert_base": ("bert", {}, BASE, BASE, None, TEXT),
    "bert_pre_training": ("bert", {}, OTHER, OTHER, positions, TEXT + [OTHER]),
    "bert_masked": ("bert", {}, MASKED, MASKED, None, TEXT),
    "bert_sequence": ("bert", {}, SEQUENCE, SEQUENCE, None, TEXT),
    "bert_other_words": (
        "bert", {}, MASKED, MASKED, also("cls.predictions.decoder.weight", f"bert.{WORDS}", 2), [BASE, MASKED],
    ),
    "bert_bias_moved": (
        "bert", {}, MASKED, MASKED, moved("cls.predictions.decoder.bias", "cls.predictions.bias"), [MASKED],
    ),
    "bert_untied": ("bert", dict(tie_word_embeddings=False), MASKED, MASKED, None, [BASE, MASKED]),
    "roberta_base": ("roberta", {}, BASE, BASE, None, TEXT),
    "roberta_sequence": ("roberta", {}, SEQUENCE, SEQUENCE, None, TEXT),
    "roberta_masked": ("roberta", {}, MASKED, MASKED, also("lm_head.decoder.bias", "lm_head.bias"), TEXT),
    "xlm_roberta_token": ("xlm-roberta", {}, TOKEN, TOKEN, None, TEXT),
    "distilbert_masked": ("distilbert", {}, MASKED, MASKED, None, TEXT),
    "distilbert_sequence": ("distilbert", {}, SEQUENCE, SEQUENCE, None, TEXT),
    "vit_base": ("vit", {}, BASE, BASE, None, [BASE, IMAGES]),
    "vit_image": ("vit", {}, IMAGES, IMAGES, None, [BASE, IMAGES]),
    "dinov2_base": ("dinov2", {}, BASE, BASE, None, [BASE, IMAGES]),
    "dinov2_image": ("dinov2", dict(use_swiglu_ffn=True), IMAGES, IMAGES, None, [BASE, IMAGES]),
    "clip": (
        "clip", {}, BASE, BASE,
        lambda t: t | {"text_model.embeddings.position_ids": torch.arange(12)[None]}, [BASE, IMAGES],
    ),
    "clip_image": ("clip", {}, IMAGES, IMAGES, None, [BASE, IMAGES]),
    "clip_text": ("clip_text_model", {}, BASE, BASE, None, [BASE]),
    "clip_text_old": ("clip_text_model", {}, BASE, BASE, below("text_model"), [BASE]),
    "clip_vision_old": ("clip_vision_model", {}, BASE, BASE, below("vision_model"), [BASE]),
    "siglip": ("siglip", {}, BASE, BASE, None, [BASE, IMAGES]),
    "siglip_image": ("siglip", {}, IMAGES, IMAGES, None, [IMAGES]),
    "siglip_vision_old": ("siglip_vision_model", {}, BASE, BASE, below("vision_model"), [BASE]),
    "tied_own_head": ("llama", TIED, LM, LM, also("lm_head.weight", EMBED, 2), [BASE, LM]),
    "tied_two_heads": ("llama", TIED, LM, LM, also("lm_head.weight", EMBED), [BASE, LM]),
    "tied_head_alone": ("llama", TIED, LM, LM, moved("lm_head.weight", EMBED), [LM]),
}


def variables(model, missing=()):
    """The tensors that share no memory, by the original's name, and were in the file."""
    aside = set(model.all_tied_weights_keys) | set(missing)
    return {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items() if name not in aside}


def shaken(model):
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.add_(torch.randn_like(tensor) * 0.2)


def live(base, model_type, head, folder):
    kind = class_of(model_type, head)
    model, info = kind.from_pretrained(base, output_loading_info=True)
    # transformers does not report buffers that it may lack.
    buffers = {name for name, _ in model.named_buffers()} - load_file(base / "model.safetensors").keys()
    missing = set(info["missing_keys"]) | buffers
    folder.mkdir()
    save_file(variables(model, missing), folder / "live.safetensors")
    known = model_type in TABLE
    tuned = get_peft_model(model, LNTuningConfig(target_modules=None if known else norms(model, missing)))
    modules = sorted(tuned.base_model.targeted_module_names)
    shaken(tuned)
    tuned.save_pretrained(folder / "adapter")
    merged = tuned.merge_and_unload()
    save_file(variables(merged, missing), folder / "merged.safetensors")
    return dict(head=head, modules=modules)


def norms(model, missing):
    """The norms that the checkpoint has."""
    modules = (name for name, module in model.named_modules() if "Norm" in type(module).__name__)
    return [name for name in modules if f"{name}.weight" not in missing]


def make(root):
    for number, (name, (model_type, options, saved, said, changes, heads)) in enumerate(CASES.items()):
        torch.manual_seed(number)
        model = class_of(model_type, saved)(CONFIG_MAPPING[model_type](**CONFIGS[model_type] | options))
        shaken(model)
        base = root / name / "base"
        model.save_pretrained(base)
        if changes:
            tensors = changes(load_file(base / "model.safetensors"))
            save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((base / "config.json").read_text())
        config.pop("architectures")
        if said:
            config["architectures"] = [class_of(model_type, said).__name__]
        (base / "config.json").write_text(json.dumps(config))
        rows = [live(base, model_type, head, root / name / head) for head in heads]
        described = dict(said=said or saved, rows=rows)
        (root / name / "described.json").write_text(json.dumps(described))


# Model types that differ from one above in names at most.
ALIKE = {
    "ministral nemotron exaone4 qwen3_moe": DECODER,
    "mixtral qwen2_moe phi3 stablelm glm glm4 starcoder2 gemma2": DECODER,
    "granite granitemoe cohere cohere2 codegen": [BASE, LM],
    "olmo olmo2 olmo3 gemma3_text": [BASE, LM, SEQUENCE],
    "gpt_neo gpt_bigcode mpt": DECODER,
    "mbart umt5": [BASE, LM, SEQUENCE],
    "camembert": TEXT,
}


def in_class(names, model):
    """transformers adds or removes the prefix of the base model where that gives a name of the class."""
    own, prefix = model.state_dict().keys(), model.base_model_prefix
    candidates = ((name.removeprefix(f"{prefix}."), f"{prefix}.{name}", name) for name in names)
    found = {next((name for name in names if name in own), None) for names in candidates}
    return sorted(found - {None} - set(model.all_tied_weights_keys))


def names(root):
    for types, heads in ALIKE.items():
        for model_type in types.split():
            config = shrink(CONFIG_MAPPING[model_type](**NEEDED.get(model_type, {})))
            with torch.device("meta"):
                models = {head: class_of(model_type, head)(config) for head in heads}
            for head, model in models.items():
                base = root / f"{model_type}_{head}" / "base"
                model.config.architectures = [type(model).__name__]
                model.config.save_pretrained(base)
                own = {key: tensor for key, tensor in model.state_dict().items() if key not in model.all_tied_weights_keys}
                file = {key: torch.zeros([1] * tensor.ndim, dtype=tensor.dtype) for key, tensor in own.items()}
                save_file(file, base / "model.safetensors", metadata={"format": "pt"})
                loaded = {other: in_class(own, models[other]) for other in heads}
                (base.parent / "names.json").write_text(json.dumps(dict(said=head, loaded=loaded)))


def check(root):
    for name, (model_type, _, saved, said, _, _) in CASES.items():
        said = said or saved
        model, info = class_of(model_type, said).from_pretrained(root / name / "out", output_loading_info=True)
        expected = load_file(root / name / said / "merged.safetensors")
        found = variables(model, info["missing_keys"])
        assert found.keys() == expected.keys(), (name, found.keys() ^ expected.keys())
        for key, tensor in expected.items():
            assert torch.equal(found[key], tensor), (name, key)
    print(len(CASES))


if __name__ == "__main__":
    {"make": make, "names": names, "check": check}[sys.argv[1]](Path(sys.argv[2]))
