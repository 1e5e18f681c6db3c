"""Tiny models of images and texts for the tests of the program (cli/tests), and what transformers and PEFT make of them.

`make DIR`                          models with their processors, by their families' names, and pictures/
`ids DIR`                           the token ids of the conversations in each MODEL/rows.jsonl of the folder
`logits MODEL ADAPTER ROW`          the logits of a conversation with PEFT's adapter
`reference MODEL FILE PICTURES`     a reference for `verify` with the pictures
`answers MODEL ADAPTER NEW ROWS`    the answers to the prompts of a JSON list; an empty ADAPTER is none
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "What is in the picture? USER: ASSISTANT: a cat and a dog",
    "Here is the original image and here are some crops to help you see better",
]
# Those of the checkpoints on the Hub, in their own words.
TEMPLATES = {
    "llava": (
        "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
        "{% if message['role'] != 'assistant' %}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}"
        "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
        "{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "gemma3": (
        "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' }}{% if message['content'] is string %}{{ message['content'] | trim }}"
        "{% else %}{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
        "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "idefics3": (
        "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
        "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
        "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "qwen3_vl": (
        "{%- set image_count = namespace(value=0) %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
        "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for content in message.content %}"
        "{%- if content.type == 'image' or 'image' in content or 'image_url' in content %}"
        "{%- set image_count.value = image_count.value + 1 %}{%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}"
        "<|vision_start|><|image_pad|><|vision_end|>{%- elif 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}"
        "{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
    # A text model's, which takes strings.
    "text": (
        "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
}
TEMPLATES["llava_next"] = TEMPLATES["llava"]
TEMPLATES["qwen2_5_vl"] = TEMPLATES["qwen3_vl"]
SPECIAL = {
    "llava": ["<image>"],
    "llava_next": ["<image>"],
    "qwen3_vl": ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>"],
    "gemma3": ["<start_of_image>", "<image_soft_token>", "<end_of_image>", "<start_of_turn>", "<end_of_turn>"],
    "idefics3": [
        "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>",
        *(f"<row_{i + 1}_col_{j + 1}>" for i in range(2) for j in range(6)),
    ],
}
SPECIAL["qwen2_5_vl"] = SPECIAL["qwen3_vl"]


class WithoutVideos:
    """Without a processor for videos, which needs torchvision."""

    def check_argument_for_proper_class(self, name, argument):
        return argument if argument is None else super().check_argument_for_proper_class(name, argument)


class OfQwen2_5(WithoutVideos, Qwen2_5_VLProcessor):
    pass


class OfQwen3(WithoutVideos, Qwen3VLProcessor):
    pass


PROCESSORS = {"qwen2_5_vl": OfQwen2_5, "qwen3_vl": OfQwen3}


def processor_of(directory):
    family = json.loads((Path(directory) / "config.json").read_text())["model_type"]
    if family not in PROCESSORS:
        return AutoProcessor.from_pretrained(directory)
    of_text = AutoTokenizer.from_pretrained(directory)
    pixels = Qwen2VLImageProcessorPil.from_pretrained(directory)
    return PROCESSORS[family](pixels, of_text, None, chat_template=of_text.chat_template)


def tokenizer(family):
    of_text = Tokenizer(models.BPE())
    of_text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    of_text.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", *(AddedToken(token, normalized=False, special=True) for token in SPECIAL[family])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    of_text.train_from_iterator(TEXT * 4, trainer)
    of_text.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    own = {}
    if family == "gemma3":
        own = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=of_text, bos_token="<s>", eos_token="</s>", pad_token="</s>", extra_special_tokens=own
    )
    return fast


def make(directory, family):
    torch.manual_seed(0)
    of_text = tokenizer(family)
    tokens = {"gemma3": "<image_soft_token>", "qwen2_5_vl": "<|image_pad|>", "qwen3_vl": "<|image_pad|>"}
    image = of_text.convert_tokens_to_ids(tokens.get(family, "<image>"))
    common = {
        "vocab_size": len(of_text), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.2,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }
    vision = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28,
        "patch_size": 7, "initializer_range": 0.2,
    }
    template = TEMPLATES[family]
    if family == "llava":
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**vision), text_config=LlamaConfig(**common), image_token_index=image,
            image_seq_length=16,
        )
        model = LlavaForConditionalGeneration(config)
        pixels = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        processor = LlavaProcessor(
            pixels, of_text, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1,
            chat_template=template,
        )
    elif family == "llava_next":
        grids = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
        config = LlavaNextConfig(
            vision_config=CLIPVisionConfig(**vision), text_config=LlamaConfig(**common), image_token_index=image,
            image_grid_pinpoints=grids,
        )
        model = LlavaNextForConditionalGeneration(config)
        pixels = LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grids
        )
        processor = LlavaNextProcessor(
            pixels, of_text, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1,
            chat_template=template,
        )
    elif family in PROCESSORS:
        numbers = {name: of_text.convert_tokens_to_ids(f"<|{name}|>") for name in ("video_pad", "vision_start", "vision_end")}
        tower = dict(depth=3, hidden_size=24, intermediate_size=32, num_heads=3, patch_size=4, out_hidden_size=32, initializer_range=0.2)
        of_family = {
            "qwen2_5_vl": dict(window_size=16, fullatt_block_indexes=[1]),
            "qwen3_vl": dict(num_position_embeddings=16, deepstack_visual_indexes=[0, 1]),
        }
        kinds = {
            "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
            "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
        }
        config = kinds[family][0](
            vision_config=tower | of_family[family],
            # Text behind the last block has no part in a reply.
            text_config={
                **common, "num_hidden_layers": 3, "head_dim": 8,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
            },
            image_token_id=image, video_token_id=numbers["video_pad"], vision_start_token_id=numbers["vision_start"],
            vision_end_token_id=numbers["vision_end"],
        )
        model = kinds[family][1](config)
        size = {"shortest_edge": 256, "longest_edge": 1600}
        pixels = Qwen2VLImageProcessorPil(patch_size=4, size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        of_text.chat_template, processor = template, pixels
        of_text.save_pretrained(directory)
    elif family == "gemma3":
        config = Gemma3Config(
            vision_config=vision, text_config={**common, "head_dim": 8, "sliding_window": 512, "query_pre_attn_scalar": 8},
            image_token_index=image, mm_tokens_per_image=4, boi_token_index=of_text.convert_tokens_to_ids("<start_of_image>"),
            eoi_token_index=of_text.convert_tokens_to_ids("<end_of_image>"),
        )
        model = Gemma3ForConditionalGeneration(config)
        # Zeros in a new model, through which no gradient comes.
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
        pixels = Gemma3ImageProcessor(size={"height": 28, "width": 28})
        processor = Gemma3Processor(pixels, of_text, image_seq_length=4, chat_template=template)
    else:
        config = Idefics3Config(
            vision_config=vision, text_config=LlamaConfig(**common), image_token_id=image, scale_factor=2, pad_token_id=1
        )
        model = Idefics3ForConditionalGeneration(config)
        pixels = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
        processor = Idefics3Processor(pixels, of_text, image_seq_len=4, chat_template=template)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def pictures(directory):
    random = np.random.default_rng(0)
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name, size, kind in [
        ("square.png", (28, 28), "RGB"), ("wide.png", (64, 30), "RGB"), ("tall.png", (21, 80), "RGB"),
        ("grey.png", (40, 28), "L"), ("alpha.png", (30, 33), "RGBA"), ("small.bmp", (9, 7), "RGB"),
    ]:
        channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[kind]
        values = random.integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, *channels), dtype=np.uint8)
        Image.fromarray(values, kind).resize(size).save(Path(directory) / name)


def opened(row):
    """The messages of a row with its pictures in the places of the parts that have none."""
    listed = iter(row.get("images", []))
    for message in row["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "image" and not {"path", "image", "url"} & part.keys():
                part["path"] = next(listed)
    return row["messages"], list(listed)


def inputs(processor, row):
    if "text" in row:
        images = [Image.open(path) for path in row["images"]] or None
        return processor(text=row["text"], images=images, return_tensors="pt")
    messages, rest = opened(row)
    more = {"processor_kwargs": {"images": [Image.open(path) for path in rest]}} if rest else {}
    return processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=row.get("open", False), **more
    )


def model_of(directory, adapter):
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    return model.eval(), processor_of(directory)


def main(command, directory, *arguments):
    if command == "make":
        for family in ["llava", "llava_next", "gemma3", "idefics3", "qwen2_5_vl", "qwen3_vl"]:
            make(f"{directory}/{family}", family)
        pictures(f"{directory}/pictures")
        result = None
    elif command == "ids":
        result = {}
        for path in Path(directory).glob("*/rows.jsonl"):
            processor = processor_of(path.parent)
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            result[path.parent.name] = [inputs(processor, row)["input_ids"][0].tolist() for row in rows]
    elif command == "logits":
        adapter, row = arguments
        model, processor = model_of(directory, adapter)
        with torch.no_grad():
            result = model(**inputs(processor, json.loads(row))).logits.flatten().tolist()
    elif command == "reference":
        model, processor = model_of(directory, "")
        parts = [{"type": "image", "path": path} for path in arguments[1:]]
        given = inputs(processor, {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]})
        with torch.no_grad():
            made = {"logits": model(**given).logits, **given}
        save_file({name: tensor.contiguous() for name, tensor in made.items()}, arguments[0])
        result = None
    elif command == "answers":
        adapter, new, rows = arguments
        model, processor = model_of(directory, adapter)
        result = []
        for row in json.loads(rows):
            given = inputs(processor, row)
            ids = model.generate(**given, do_sample=False, max_new_tokens=int(new))[0, given["input_ids"].shape[1] :]
            result.append(processor.tokenizer.decode(ids, skip_special_tokens=True))
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
