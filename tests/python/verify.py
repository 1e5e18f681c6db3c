"""`verify.py DIR`: small models of transformers, some with an adapter of PEFT, and what Python computes with them."""

import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import LNTuningConfig, get_peft_model
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
TEXT = dict(vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)
CASES = {
    "bert_base": ("bert", "AutoModel", TEXT, ["LayerNorm"]),
    "bert_classifier": ("bert", "AutoModelForSequenceClassification", dict(TEXT, num_labels=4), ["LayerNorm"]),
    "llama": ("llama", "AutoModelForCausalLM", TEXT, None),
    "llama_hidden": ("llama", "AutoModelForCausalLM", TEXT, None),
    "t5": ("t5", "AutoModelForSeq2SeqLM", dict(vocab_size=50, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3), None),
    "t5_hidden": ("t5", "AutoModelForSeq2SeqLM", dict(
        vocab_size=50, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3,
    ), None),
    "vit": ("vit", "AutoModelForImageClassification", dict(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=16, patch_size=4,
    ), ["layernorm_before", "layernorm_after"]),
}

for case, (model_type, kind, arguments, norms) in CASES.items():
    torch.manual_seed(len(case))
    folder = Path(sys.argv[1]) / case
    config = CONFIG_MAPPING[model_type](**arguments)
    model = getattr(transformers, kind).from_config(config, attn_implementation="eager")
    model.save_pretrained(folder)
    model = get_peft_model(model, LNTuningConfig(target_modules=norms)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder / "adapter")
    if model_type == "vit":
        inputs = {"pixel_values": torch.randn(3, 3, 16, 16)}
    else:
        mask = torch.ones(3, 9, dtype=torch.int64)
        mask[0, 6:] = 0
        inputs = {"input_ids": torch.randint(3, 50, (3, 9)), "attention_mask": mask}
    if model_type == "bert":
        inputs["token_type_ids"] = torch.randint(0, 2, (3, 9))
    if model_type == "t5":
        inputs["decoder_input_ids"] = torch.randint(3, 50, (3, 7))
    with torch.no_grad():
        if case == "llama_hidden":
            output = {"last_hidden_state": model.model.model(**inputs).last_hidden_state}
        elif case == "t5_hidden":
            states = model(**inputs, output_hidden_states=True).decoder_hidden_states
            output = {"last_hidden_state": states[-1]}
        else:
            result = model(**inputs)
            name = "logits" if hasattr(result, "logits") else "last_hidden_state"
            output = {name: result[name]}
    save_file({**inputs, **{name: tensor.contiguous() for name, tensor in output.items()}}, folder / "reference.st")
