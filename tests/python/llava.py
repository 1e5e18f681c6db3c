"""`llava.py DIR`: tiny random LLaVAs of transformers, what they compute for texts with images, and all gradients; and
configurations with what is missing in them. `llava.py DIR CASE:MODEL…`: the models load and compute what the cases do."""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, GenerationConfig
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
IMAGE, PAD, EOS = 60, 0, 59
TOWER = dict(
    model_type="clip_vision_model", hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3,
    image_size=12, patch_size=4,
)
TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
    max_position_embeddings=128, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=1,
)
# Of the text, of the tower, of the whole.
CASES = {
    "llama": (dict(model_type="llama"), {}, {}),
    "mistral": (
        dict(model_type="mistral", sliding_window=20), dict(hidden_act="gelu"),
        dict(vision_feature_layer=-1, vision_feature_select_strategy="full", multimodal_projector_bias=False),
    ),
    "qwen2": (dict(model_type="qwen2", tie_word_embeddings=True), {}, dict(vision_feature_layer=[-2, 0, 3, -4])),
    # Embeddings of tokens are scaled, those of images are not; logits are not capped.
    "gemma2": (
        dict(model_type="gemma2", head_dim=8, query_pre_attn_scalar=8), {},
        dict(vision_feature_layer=[1], projector_hidden_act="quick_gelu"),
    ),
    # Another rope for texts beyond the first length: as a part of a model, its cache is not computed again there.
    "phi3": (
        dict(
            model_type="phi3", original_max_position_embeddings=30, rope_parameters=dict(
                rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[2.0, 3.0, 4.0, 5.0],
            ),
        ), dict(model_type="siglip_vision_model"), {},
    ),
    # Images in tiles of several grids.
    "next": (
        dict(model_type="mistral"), {},
        dict(model_type="llava_next", image_grid_pinpoints=[[12, 24], [24, 12], [24, 24], [36, 12], [12, 36]]),
    ),
    # Everything is scaled but the logits.
    "granite": (
        dict(model_type="granite", embedding_multiplier=3.0, logits_scaling=5.0, residual_multiplier=0.5),
        dict(model_type="siglip_vision_model", hidden_act="gelu"),
        dict(vision_feature_layer=-1, vision_feature_select_strategy="full", projector_hidden_act="relu", tie_word_embeddings=True),
    ),
}


def shaken(model):
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.15)
    return model.eval()


def rows(model, images, sizes):
    """Rows of ids, one with an image, one with two, one with none, one with an image at the end."""
    with torch.no_grad():
        found = model.get_image_features(images, **sizes).pooler_output
    a, b, c, d = ([IMAGE] * len(features) for features in found)
    words = lambda count: torch.randint(2, EOS, (count,)).tolist()
    return [words(2) + a + words(4), words(1) + b + words(2) + c + words(3), words(5), words(6) + d + words(1)]


def padded(rows, side):
    length = max(map(len, rows))
    ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for at, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[at, place], mask[at, place] = torch.tensor(row), 1
    return ids, mask


def computed(model, reference, prefix, ids, mask, images, sizes):
    # The first token of a row has nothing before it but padding, whose states are nobody's.
    first = mask.cumsum(1) <= 1
    labels = ids.masked_fill((ids == IMAGE) | (mask == 0) | first, -100)
    model.zero_grad()
    inputs = dict(sizes, pixel_values=images) if len(images) else {}
    result = model(input_ids=ids, attention_mask=mask, labels=labels, **inputs)
    result.loss.backward()
    reference |= {
        f"{prefix}.ids": ids, f"{prefix}.mask": mask, f"{prefix}.labels": labels, f"{prefix}.images": images,
        f"{prefix}.logits": result.logits.detach().clone(), f"{prefix}.loss": result.loss.detach().clone(),
    }
    reference |= {f"{prefix}.{key}": value for key, value in sizes.items()}
    for name, tensor in model.named_parameters():
        if tensor.grad is not None:
            reference[f"{prefix}.grad.{name}"] = tensor.grad.clone()


def renamed(state, *rules):
    for before, after in rules:
        state = {name.replace(before, after, 1) if name.startswith(before) else name: state[name] for name in state}
    return {name: tensor.clone() for name, tensor in state.items()}


def layouts(model, root):
    """The same weights under the names of each version, and what this one reads of them."""
    state = dict(model.state_dict())
    tower = "model.vision_tower."
    former = [("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")]
    outer = [("model.multi_modal_projector.", "multi_modal_projector.")]
    named = {
        "layout_a": renamed(state, *former, *outer, (tower, "vision_tower.vision_model.")),
        "layout_b": renamed(state, (tower, tower + "vision_model.")),
        "layout_c": renamed(state),
        "layout_d": renamed(state, *former, *outer, (tower, "vision_tower.")),
    }
    # Buffers that former versions wrote.
    positions = {"vision_tower.vision_model.embeddings.position_ids": torch.arange(10)[None]}
    angles = {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    for name, tensors in named.items():
        model.config.save_pretrained(root / name)
        buffers = positions | angles if name == "layout_a" else {}
        save_file(tensors | buffers, root / name / "model.safetensors", metadata={"format": "pt"})
        again, found = AutoModelForImageTextToText.from_pretrained(root / name, output_loading_info=True)
        assert not any(found.values()), (name, found)
        assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in state.items()), name


def configurations():
    """Those of files, what they mean in full, and the tokens that end a text and fill a row."""
    types = "cohere gemma gemma2 gemma3_text granite llama mistral olmo olmo2 phi phi3 qwen2 qwen3 smollm3 stablelm starcoder2"
    texts = [dict(model_type=kind) | given for kind in types.split() for given in ({}, dict(num_attention_heads=64))]
    vicuna = dict(
        _name_or_path="lmsys/vicuna-7b-v1.5", architectures=["LlamaForCausalLM"], max_position_embeddings=4096,
        model_type="llama", rms_norm_eps=1e-05, torch_dtype="float16", vocab_size=32064,
    )
    large = dict(
        hidden_size=1024, image_size=336, intermediate_size=4096, model_type="clip_vision_model", num_attention_heads=16,
        num_hidden_layers=24, patch_size=14, projection_dim=768, vocab_size=32000,
    )
    given = [
        {}, dict(text_config=None, vision_config=None), dict(text_config={}, vision_config={}),
        dict(text_config=vicuna, vision_config=large, pad_token_id=32001, image_token_index=32000),
        dict(text_config=dict(vicuna, eos_token_id=[2, 7], pad_token_id=5), vision_config=dict(hidden_size=96)),
        dict(vision_config=dict(large, architectures=["CLIPModel"]), image_token_index=7, eos_token_id=3),
        dict(image_token_id=11), dict(text_config=dict(tie_word_embeddings=True)), dict(tie_word_embeddings=True),
        dict(text_config=dict(model_type="gemma"), tie_word_embeddings=False),
        dict(text_config=dict(model_type="gemma", tie_word_embeddings=False)),
        dict(text_config=dict(model_type="gemma", tie_word_embeddings=False), tie_word_embeddings=True),
        *(dict(text_config=text) for text in texts),
        *(dict(model_type=kind, vision_config=dict(image_size=896)) for kind in ("gemma3", "idefics3", "smolvlm")),
        dict(model_type="llava_next"),
        dict(model_type="qwen3_vl", vision_config=dict(out_hidden_size=4096)),
    ]
    for fields in given:
        fields = dict(model_type="llava") | fields
        config = CONFIG_MAPPING[fields["model_type"]].from_dict(fields)
        rules = GenerationConfig.from_model_config(config)
        yield fields, json.loads(config.to_json_string(use_diff=False)), rules.eos_token_id, rules.pad_token_id


root = Path(sys.argv[1])
if len(sys.argv) > 2:
    for argument in sys.argv[2:]:
        case, path = argument.split(":", 1)
        reference = load_file(root / case / "reference.st")
        model, found = AutoModelForImageTextToText.from_pretrained(path, output_loading_info=True)
        assert not any(found.values()), (path, found)
        sizes = {"image_sizes": reference[key] for key in ["one.image_sizes"] if key in reference}
        logits = model(input_ids=reference["one.ids"], pixel_values=reference["one.images"], **sizes).logits
        torch.testing.assert_close(logits, reference["one.logits"], rtol=1e-4, atol=1e-4)
    sys.exit()
(root / "configurations.json").write_text(json.dumps(list(configurations())))
for case, (text, tower, whole) in CASES.items():
    torch.manual_seed(len(case))
    model_type = whole.pop("model_type", "llava")
    config = CONFIG_MAPPING[model_type](
        text_config=TEXT | text, vision_config=TOWER | tower, image_token_index=IMAGE, **whole,
    )
    model = shaken(AutoModelForImageTextToText.from_config(config, attn_implementation="eager"))
    model.save_pretrained(root / case)
    # Of the first image, and of all.
    tiles, sizes, first = (1, 4), {}, {}
    if model_type == "llava_next":
        every = torch.tensor([[10, 30], [17, 16], [50, 9], [11, 12]])
        counts = [image_size_to_num_patches(size, config.image_grid_pinpoints, 12) for size in every]
        tiles, sizes, first = (counts[0], sum(counts)), dict(image_sizes=every), dict(image_sizes=every[:1])
    images = torch.randn(tiles[1], 3, 12, 12)
    given = rows(model, images, sizes)
    reference = {}
    for side in ("right", "left"):
        computed(model, reference, side, *padded(given, side), images, sizes)
    computed(model, reference, "none", *padded(given[2:3], "right"), images[:0], {})
    computed(model, reference, "one", *padded(given[:1], "right"), images[: tiles[0]], first)
    ids, mask = padded(given, "left")
    with torch.no_grad():
        new = model.generate(
            input_ids=ids, attention_mask=mask, pixel_values=images, **sizes, do_sample=False, max_new_tokens=12,
            pad_token_id=PAD,
        )
    reference["new"] = new[:, ids.shape[1]:]
    save_file({name: tensor.clone() for name, tensor in reference.items()}, root / case / "reference.st")
    if case == "next":
        # The number of tokens of images of many sizes.
        every = torch.cat([torch.randint(1, most, (100, 2)) for most in (40, 400, 4000)])
        counts = [image_size_to_num_patches(size, config.image_grid_pinpoints, 12) for size in every]
        features = [torch.zeros(count, 9, 1) for count in counts]
        _, tokens = model.model.pack_image_features(features, every, "default", torch.zeros(1))
        (root / case / "tokens.json").write_text(json.dumps([*zip(every.tolist(), tokens.tolist())]))
    if case == "llama":
        layouts(model, root)
        # The model without a head, and what it says of the last batch.
        model.model.save_pretrained(root / "base")
        hidden = model.model(input_ids=padded(given[:1], "right")[0], pixel_values=images[:1]).last_hidden_state
        save_file({"hidden": hidden.detach().clone()}, root / "base" / "reference.st")
