"""`door.py DIR`: transformers loads each model directory in DIR with the head that its configuration names. Prints what it
makes of the configurations: per directory the `model_type`, the class, or null where transformers has none, and the labels'
names."""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
AUTO = {
    "ForCausalLM": "CausalLM", "LMHeadModel": "CausalLM", "ForConditionalGeneration": "Seq2SeqLM", "ForMaskedLM": "MaskedLM",
    "ForSequenceClassification": "SequenceClassification", "ForTokenClassification": "TokenClassification",
    "ForImageClassification": "ImageClassification", "Model": None,
}
read = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    config = AutoConfig.from_pretrained(folder)
    (name,) = config.architectures
    head = next(head for ending, head in AUTO.items() if name.endswith(ending))
    if head == "Seq2SeqLM" and hasattr(config, "vision_config"):
        head = "ImageTextToText"
    auto = getattr(transformers, f"AutoModelFor{head}" if head else "AutoModel")
    labels = [config.id2label[index] for index in range(config.num_labels)]
    if type(config) not in auto._model_mapping:
        read[folder.name] = [config.model_type, None, labels]
        continue
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    left = {key: sorted(map(str, value)) for key, value in info.items() if value}
    assert not left, (folder, left)
    read[folder.name] = [config.model_type, type(model).__name__, labels]
print(json.dumps(read))
