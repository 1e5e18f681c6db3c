"""`seeing.py DIR`: tiny random models of images and texts: what they compute, and all gradients. `seeing.py DIR
CASE:MODEL…`: the models load, and compute of a batch of the case what `MODEL/expected.st` says."""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from images_and_texts import PAD, EOS, computed, padded, renamed, rows, shaken
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
TOWER = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=12, patch_size=2)
SIGLIP = TOWER | dict(model_type="siglip_vision_model")
TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
    max_position_embeddings=128, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=1,
)
# Images are longer than the window.
GEMMA = TEXT | dict(head_dim=8, query_pre_attn_scalar=16, num_hidden_layers=4, sliding_window=6)
# name -> (model type, text, tower, further configuration, tokens of an image)
GRIDS = [(1, 4, 4), (1, 2, 6), (1, 6, 2), (1, 4, 8)]
QWEN_TOWER = dict(
    depth=4, hidden_size=24, num_heads=3, intermediate_size=40, patch_size=2, temporal_patch_size=2, spatial_merge_size=2,
    num_position_embeddings=9, deepstack_visual_indexes=[0, 2], out_hidden_size=32,
)
QWEN2_5_TOWER = dict(
    depth=3, hidden_size=24, num_heads=3, intermediate_size=40, patch_size=2, temporal_patch_size=2, spatial_merge_size=2,
    window_size=8, fullatt_block_indexes=[1], out_hidden_size=32,
)
QWEN = ("qwen2_5_vl", "qwen3_vl")
CASES = {
    "gemma3": (
        "gemma3", GEMMA | dict(sliding_window_pattern=2, rope_scaling=dict(rope_type="linear", factor=8.0)),
        SIGLIP | dict(vision_use_head=False), dict(mm_tokens_per_image=9, image_token_index=60), 9,
    ),
    # Patches left over, a token without an embedding, a head in the tower that nothing uses, and one of its own.
    "gemma3_odd": (
        "gemma3", GEMMA | dict(layer_types=["full_attention", "sliding_attention"] * 2),
        SIGLIP | dict(image_size=15, layer_norm_eps=1e-3),
        dict(mm_tokens_per_image=10, image_token_index=70, tie_word_embeddings=False), 9,
    ),
    "idefics3": ("idefics3", TEXT | dict(model_type="llama"), TOWER, dict(image_token_id=60, scale_factor=2), 9),
    # Pixels beyond the last whole patch; a head that is tied by the model's word alone.
    "smolvlm": (
        "smolvlm", TEXT | dict(model_type="llama", tie_word_embeddings=False), TOWER | dict(image_size=13),
        dict(image_token_id=60, scale_factor=3, tie_word_embeddings=True), 4,
    ),
    # Images of any size.
    "qwen3_vl": (
        "qwen3_vl",
        TEXT | dict(
            head_dim=16, num_hidden_layers=3, rope_scaling=dict(rope_type="default", mrope_interleaved=True, mrope_section=[4, 2, 2]),
            rope_theta=1000.0,
        ),
        QWEN_TOWER, dict(image_token_id=60, video_token_id=61), None,
    ),
    # Windows, which some images do not fill, and one image lies in whole.
    "qwen2_5_vl": (
        "qwen2_5_vl",
        TEXT | dict(num_hidden_layers=3, rope_scaling=dict(type="mrope", mrope_section=[2, 1, 1]), rope_theta=1000.0),
        QWEN2_5_TOWER, dict(image_token_id=60, video_token_id=61), None,
    ),
    "llava": (
        "llava", TEXT | dict(model_type="qwen2"), SIGLIP | dict(image_size=6, vision_use_head=False),
        dict(image_token_index=60, vision_feature_layer=-1, vision_feature_select_strategy="full"), 9,
    ),
    "llava_middle": (
        "llava", TEXT | dict(model_type="llama"), SIGLIP | dict(image_size=6),
        dict(image_token_index=60, vision_feature_layer=[-2, 0]), 8,
    ),
}
COUNTS = [1, 2, 0, 1]


def patched(images):
    """Patches of all images in one row, and how they stand."""
    return torch.cat([patches for patches, _ in images]), torch.tensor([grid for _, grid in images])


def nested(flat, counts):
    """One list of images per row, filled up with zeros."""
    batch = torch.zeros(len(counts), max(counts), *flat.shape[1:], dtype=flat.dtype)
    for row, images in enumerate(flat.split(counts)):
        batch[row, : len(images)] = images
    return batch


def of_images(model, images, counts, ids, image, mask=None):
    """The inputs of these images, as each family takes them."""
    if not len(images):
        return {}
    kind = model.config.model_type
    if kind in QWEN:
        patches, grids = patched(images)
        return dict(pixel_values=patches, image_grid_thw=grids, mm_token_type_ids=(ids == image).int())
    if kind in ("idefics3", "smolvlm"):
        masks = {} if mask is None else dict(pixel_attention_mask=nested(mask, counts))
        return dict(pixel_values=nested(images, counts)) | masks
    return dict(pixel_values=images) | (dict(token_type_ids=(ids == image).long()) if kind == "gemma3" else {})


def layouts(model, case, root):
    """The same weights under the names of each version, and the model without a head."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    tower = "model.vision_tower."
    former = [("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")]
    outer = [("model.multi_modal_projector.", "multi_modal_projector.")]
    named = {
        "a": renamed(state, *former, *outer, (tower, "vision_tower.vision_model.")),
        "b": renamed(state, (tower, tower + "vision_model.")),
        "c": renamed(state),
        "d": renamed(state, *former, *outer, (tower, "vision_tower.")),
    }
    for name, tensors in named.items():
        folder = root / f"{case}_{name}"
        model.config.save_pretrained(folder)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        again, found = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert not any(found.values()), (name, found)
        assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in state.items()), name


def of_the_hub(model, case, root):
    """The same weights and settings as the first files of Qwen2.5-VL have them."""
    kind, text, tower, whole, _ = CASES[case]
    folder = root / f"{case}_a"
    folder.mkdir()
    config = dict(model_type=kind, architectures=[type(model).__name__], vision_config=tower | dict(model_type=kind), **text, **whole)
    (folder / "config.json").write_text(json.dumps(config))
    state = renamed(model.state_dict(), ("model.language_model.", "model."), ("model.visual.", "visual."))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    again, found = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())


def check(case, folder):
    kind, _, _, whole, _ = CASES[case]
    model, found = AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(found.values()), (folder, found)
    reference = load_file(root / case / "reference.st")
    batch = {name: reference.get(f"two.{name}") for name in ("ids", "mask", "images", "grids")}
    images = batch["images"]
    if kind in QWEN:
        ends = batch["grids"].prod(1).cumsum(0).tolist()
        images = list(zip(images.tensor_split(ends[:-1]), map(tuple, batch["grids"].tolist())))
    image = whole.get("image_token_id", whole.get("image_token_index"))
    inputs = of_images(model, images, [2], batch["ids"], image)
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["ids"], attention_mask=batch["mask"], **inputs).logits
    expected = load_file(folder / "expected.st")["logits"]
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max(), folder


root = Path(sys.argv[1])
for argument in sys.argv[2:]:
    case, folder = argument.split(":", 1)
    check(case, Path(folder))
if sys.argv[2:]:
    sys.exit()

for case, (kind, text, tower, whole, each) in CASES.items():
    torch.manual_seed(len(case))
    config = CONFIG_MAPPING[kind](text_config=text, vision_config=tower, **whole)
    model = shaken(AutoModelForImageTextToText.from_config(config, attn_implementation="eager"))
    model.save_pretrained(root / case)
    image = whole.get("image_token_id", whole.get("image_token_index"))
    if kind in QWEN:
        images = [(torch.randn(t * h * w, 3 * 2 * 2 * 2), (t, h, w)) for t, h, w in GRIDS]
        given = rows([[image] * (h * w // 4) for _, h, w in GRIDS])
    else:
        size = tower["image_size"]
        images = torch.randn(4, 3, size, size)
        given = rows([[image] * each] * 4)
    reference = {}

    def batch(name, ids, mask, images, counts, pixels=None):
        computed(model, reference, name, ids, mask, image, **of_images(model, images, counts, ids, image, pixels))
        if not len(images):
            return
        if kind in QWEN:
            reference[f"{name}.images"], reference[f"{name}.grids"] = patched(images)
        else:
            reference[f"{name}.images"] = images

    for side in ("right", "left"):
        batch(side, *padded(given, side), images, COUNTS)
    batch("none", *padded(given[2:3], "right"), images[:0], [0])
    batch("one", *padded(given[:1], "right"), images[:1], [1])
    batch("two", *padded(given[1:2], "right"), images[1:3], [2])
    if each:
        # Two images without a word between them.
        joined = given[1][: 1 + each] + given[1][3 + each :]
        batch("joined", *padded([joined], "right"), images[1:3], [2])
    ids, mask = padded(given, "left")
    inputs = of_images(model, images, COUNTS, ids, image)
    if kind in ("idefics3", "smolvlm"):
        # Images of several sizes, padded to one.
        pixels = torch.zeros(4, size, size, dtype=torch.long)
        for at, (height, width) in enumerate(((size, size), (5, 12), (8, 3), (size, 6))):
            pixels[at, :height, :width] = 1
        reference["padded.pixels"] = pixels
        batch("padded", ids, mask, images, COUNTS, pixels)
    with torch.no_grad():
        new = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=12, pad_token_id=PAD, **inputs,
        )
    reference["new"] = new[:, ids.shape[1]:]
    reference = {name: tensor.detach().clone() for name, tensor in reference.items()}
    save_file(reference, root / case / "reference.st")
    if case == "gemma3":
        layouts(model, case, root)
    if case == "qwen2_5_vl":
        of_the_hub(model, case, root)
    if case in ("gemma3", "idefics3", *QWEN):
        model.model.save_pretrained(root / f"{case}_base")
