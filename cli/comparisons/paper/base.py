"""The directory of the language model that cannot see yet: SmolLM2-135M behind the tower, as transformers' Llava."""

import json

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.initialization import no_init_weights

import scenes
import smollm2
import tower

IMAGE = "<image>"
# A turn is a line with the question, and the answer with its end; ChatML's marks would double the tokens of such rows.
# Text stands before the picture: the model needs a first token that it knows.
TEMPLATE = """{%- for message in messages -%}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- 'Picture:<image>\\n' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}{%- endif -%}
{{- '\n' if message['role'] == 'user' else '<|im_end|>' -}}
{%- endfor -%}"""
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True,
    "size": {"shortest_edge": scenes.SIZE}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": scenes.SIZE, "width": scenes.SIZE}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [tower.MEAN] * 3, "image_std": [tower.STD] * 3,
}


def tokenizer():
    made = smollm2.tokenizer()
    made.add_special_tokens({"additional_special_tokens": [IMAGE]})
    made.chat_template = TEMPLATE
    return made


def model(trained_tower, made):
    """In bf16, with a connector that is not trained."""
    text = smollm2.model(torch.bfloat16)
    text.resize_token_embeddings(len(made))
    text.config.tie_word_embeddings = True
    # That the file was quantised; the weights are not any more.
    del text.config.quantization_config
    config = LlavaConfig(
        vision_config=trained_tower.config, text_config=text.config,
        image_token_index=made.convert_tokens_to_ids(IMAGE), image_seq_length=tower.PATCHES,
        vision_feature_layer=-1, vision_feature_select_strategy="default", tie_word_embeddings=True,
    )
    with no_init_weights():
        whole = LlavaForConditionalGeneration(config)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.model.vision_tower.load_state_dict(trained_tower.state_dict())
    whole.tie_weights()
    start(whole.model.multi_modal_projector, float(text.model.embed_tokens.weight.float().std()))
    # Rows are short: the plain products are faster there than the fused kernel.
    whole.set_attn_implementation("eager")
    return whole.to(torch.bfloat16)


def start(connector, std):
    """Begins with outputs that are as large as embeddings of tokens."""
    torch.manual_seed(0)
    for layer, gain in [(connector.linear_1, 1.0), (connector.linear_2, 2 * std)]:
        torch.nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)
        torch.nn.init.zeros_(layer.bias)


def save(whole, made, directory):
    whole.save_pretrained(directory)
    made.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=1) + "\n")
    names = {"processor_class": "LlavaProcessor", "image_token": IMAGE, "patch_size": tower.CONFIG["patch_size"]}
    names |= {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    (directory / "processor_config.json").write_text(json.dumps(names, indent=1) + "\n")
