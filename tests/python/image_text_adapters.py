"""The Python half of tests/adapter/image_text.rs: tiny models of images and texts, in real transformers and PEFT.

`make DIR` writes model directories, the norms of each that get no gradient, adapters of PEFT, and the same adapters
under the keys of other layouts. `check DIR` loads the adapters that the Rust half wrote.
"""

import json
import re
import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import LNTuningConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig, CLIPForImageClassification, CLIPVisionConfig, CLIPVisionModel, Gemma3Config,
    Gemma3ForConditionalGeneration, Gemma3TextConfig, GemmaConfig, Idefics3Config, Idefics3ForConditionalGeneration,
    InternVLConfig, InternVLForConditionalGeneration, LlamaConfig, LlamaForCausalLM, LlavaConfig,
    LlavaForConditionalGeneration, LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration, Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig,
    PaliGemmaConfig, PaliGemmaForConditionalGeneration, PixtralVisionConfig, Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration, Qwen2Config, Qwen3VLConfig, Qwen3VLForConditionalGeneration, SiglipConfig,
    SiglipForImageClassification, SiglipVisionConfig, VipLlavaConfig, VipLlavaForConditionalGeneration, ViTConfig,
    ViTForImageClassification,
)

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
IMAGE = 59
SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2)
VISION = dict(SMALL, image_size=8, patch_size=4)
TEXT = dict(
    SMALL, num_hidden_layers=2, num_key_value_heads=1, head_dim=16, vocab_size=60, max_position_embeddings=256,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
)
SECTIONS = dict(rope_scaling=dict(type="mrope", rope_type="default", mrope_section=[2, 3, 3]))
WORDS = dict(vocab_size=60, **{**SMALL, "num_hidden_layers": 2}, bos_token_id=1, eos_token_id=2)


def llava(layer=-2, tied=False, tower=None, **more):
    text = LlamaConfig(**{**TEXT, "tie_word_embeddings": tied})
    return LlavaForConditionalGeneration(LlavaConfig(
        vision_config=tower or CLIPVisionConfig(**VISION), text_config=text, image_token_index=IMAGE,
        image_seq_length=4, vision_feature_layer=layer, tie_word_embeddings=tied, **more,
    ))


def next_llava():
    return LlavaNextForConditionalGeneration(LlavaNextConfig(
        tie_word_embeddings=False,
        vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT), image_token_index=IMAGE,
        image_grid_pinpoints=[[8, 8], [16, 8]],
    ))


def onevision():
    return LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(
        tie_word_embeddings=False,
        vision_config=SiglipVisionConfig(**VISION), text_config=Qwen2Config(**TEXT), image_token_index=IMAGE,
        image_grid_pinpoints=[[8, 8], [16, 8]],
    ))


def vipllava():
    return VipLlavaForConditionalGeneration(VipLlavaConfig(
        tie_word_embeddings=False,
        vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT), image_token_index=IMAGE,
        vision_feature_layers=[-2, 1],
    ))


def gemma3():
    return Gemma3ForConditionalGeneration(Gemma3Config(
        vision_config=SiglipVisionConfig(**VISION), text_config=Gemma3TextConfig(**TEXT), mm_tokens_per_image=1,
        image_token_index=IMAGE, tie_word_embeddings=False,
    ))


def paligemma():
    return PaliGemmaForConditionalGeneration(PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False, projection_dim=32),
        text_config=GemmaConfig(**TEXT), projection_dim=32, image_token_index=IMAGE, tie_word_embeddings=False,
    ))


def idefics3():
    return Idefics3ForConditionalGeneration(Idefics3Config(
        tie_word_embeddings=False,
        vision_config=dict(VISION, patch_size=2), text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, scale_factor=2,
        pad_token_id=0,
    ))


def qwen2_5_vl():
    vision = dict(
        hidden_size=32, out_hidden_size=32, depth=2, num_heads=2, intermediate_size=48, patch_size=2, window_size=8,
        fullatt_block_indexes=[1],
    )
    text = dict(**TEXT, **SECTIONS)
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, tie_word_embeddings=False)
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl():
    vision = dict(
        hidden_size=32, out_hidden_size=32, depth=2, num_heads=2, intermediate_size=48, patch_size=2,
        deepstack_visual_indexes=[0], num_position_embeddings=16,
    )
    text = dict(**TEXT, **SECTIONS)
    config = Qwen3VLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, tie_word_embeddings=False)
    return Qwen3VLForConditionalGeneration(config)


def internvl(layer):
    vision = dict(SMALL, image_size=[8, 8], patch_size=[2, 2], use_mean_pooling=False)
    return InternVLForConditionalGeneration(InternVLConfig(
        vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_id=IMAGE, image_seq_length=4,
        vision_feature_layer=layer, tie_word_embeddings=False,
    ))


def mistral3():
    return Mistral3ForConditionalGeneration(Mistral3Config(
        vision_config=PixtralVisionConfig(**SMALL, head_dim=16, image_size=8, patch_size=2),
        text_config=MistralConfig(**TEXT), image_token_index=IMAGE, spatial_merge_size=2, vision_feature_layer=-2,
    ))


def classifier(kind, config, tower):
    return kind(config(vision_config=tower(**VISION).to_dict(), text_config=WORDS, num_labels=2))


MODELS = {
    "llava": llava,
    "llava_last": lambda: llava(-1),
    "llava_first": lambda: llava(1),
    "llava_list": lambda: llava([0, -3]),
    "llava_siglip": lambda: llava(-2, tower=SiglipVisionConfig(**VISION), vision_feature_select_strategy="full"),
    "llava_tied": lambda: llava(tied=True),
    "llava_next": next_llava,
    "llava_onevision": onevision,
    "vipllava": vipllava,
    "gemma3": gemma3,
    "paligemma": paligemma,
    "idefics3": idefics3,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": lambda: internvl(-1),
    "internvl_inner": lambda: internvl(-2),
    "mistral3": mistral3,
    "clip": lambda: classifier(CLIPForImageClassification, CLIPConfig, CLIPVisionConfig),
    "siglip": lambda: classifier(SiglipForImageClassification, SiglipConfig, SiglipVisionConfig),
}
# The models whose recipes are tried in PEFT.
TRIED = ["llava", "llava_tied", "gemma3", "idefics3", "qwen2_5_vl", "qwen3_vl"]
# The tokens of an image.
TOKENS = {"gemma3": 1, "llava_next": 10, "llava_onevision": 10}


def build(name):
    torch.manual_seed(sum(map(ord, name)))
    model = MODELS[name]().eval()
    with torch.no_grad():
        # Some begin as zeros, behind which nothing has a gradient.
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.05)
    return model


def inputs(name):
    random = torch.Generator().manual_seed(7)
    pixels = lambda *size: torch.randn(*size, generator=random)
    if name in ("clip", "siglip"):
        return dict(pixel_values=pixels(1, 3, 8, 8))
    ids = torch.tensor([[1] + [IMAGE] * TOKENS.get(name, 4) + [5, 6, 7, 8]])
    found = dict(input_ids=ids, pixel_values=pixels(1, 3, 8, 8))
    if name in ("gemma3", "paligemma"):
        found["token_type_ids"] = (ids == IMAGE).long()
    if name == "idefics3":
        found["pixel_values"] = found["pixel_values"][:, None]
    if name in ("llava_next", "llava_onevision"):
        found.update(pixel_values=pixels(1, 2, 3, 8, 8), image_sizes=torch.tensor([[8, 8]]))
    if name == "mistral3":
        found["image_sizes"] = torch.tensor([[8, 8]])
    if name.startswith("qwen"):
        grid = torch.tensor([[1, 4, 4]])
        found.update(pixel_values=pixels(16, 24), image_grid_thw=grid, mm_token_type_ids=(ids == IMAGE).int())
    return found


def logits(name, model):
    with torch.no_grad():
        return model.eval()(**inputs(name)).logits


def without_gradient(name, model):
    """The norms that the loss does not reach."""
    loss = model(**inputs(name)).logits.float().square().sum()
    loss.backward()
    grads = {}
    for key, tensor in model.named_parameters():
        module = key.rpartition(".")[0]
        reached = tensor.grad is not None and bool(tensor.grad.abs().max() > 0)
        grads[module] = grads.get(module, False) or reached
    model.zero_grad()
    kind = lambda module: type(model.get_submodule(module)).__name__
    return sorted(m for m, reached in grads.items() if not reached and kind(m).endswith(("LayerNorm", "RMSNorm")))


def trained(model, **arguments):
    """The model with an adapter of PEFT that has learned something."""
    tuned = get_peft_model(model, LNTuningConfig(**arguments)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in tuned.parameters():
            if tensor.requires_grad:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    return tuned


def tuned_values(tuned):
    """The trained tensors by the names that they have in the base."""
    found = {}
    for key, tensor in tuned.named_parameters():
        if tensor.requires_grad:
            name = key.removeprefix("base_model.model.")
            name = re.sub(r"\.(ln_tuning_layers|modules_to_save)\.default\.", ".", name)
            found[name] = tensor.detach().clone()
    return found


def renamed(source, target, rules, **settings):
    """An adapter as former versions, whose models had other names, wrote it."""
    target.mkdir()
    tensors = {}
    for key, tensor in load_file(source / "adapter_model.safetensors").items():
        key = key.removeprefix("base_model.model.")
        for pattern, replacement in rules:
            key, count = re.subn(pattern, replacement, key)
            if count:
                break
        tensors["base_model.model." + key] = tensor
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**config, **settings}))


NORMS = ["input_layernorm", "post_attention_layernorm", "norm"]
SEEING = [*NORMS, "pre_layrnorm", "layer_norm1", "layer_norm2"]
FORMER = [
    (r"^model\.language_model", "language_model.model"), (r"^lm_head", "language_model.lm_head"),
    (r"^model\.vision_tower", "vision_tower.vision_model"), (r"^model\.", ""),
]
WITHOUT_LEVEL = [*FORMER[:2], (r"^model\.", "")]
BETWEEN = [(r"^model\.vision_tower", "model.vision_tower.vision_model")]
FIRST = [
    (r"^model\.language_model", "model"), (r"^model\.vision_tower", "model.vision_tower.vision_tower.vision_model"),
    (r"(multi_modal_projector)\.ln_tuning_layers\.default\.linear_1", r"mm_projector.ln_tuning_layers.default.0"),
    (r"(multi_modal_projector)\.ln_tuning_layers\.default\.linear_2", r"mm_projector.ln_tuning_layers.default.2"),
]
PATHS = [
    "language_model.model.layers.1.input_layernorm", "language_model.model.norm",
    "vision_tower.vision_model.encoder.layers.0.layer_norm1", "language_model.lm_head",
    "multi_modal_projector.linear_1",
]
PRESENT = [
    "model.language_model.layers.1.input_layernorm", "model.language_model.norm",
    "model.vision_tower.encoder.layers.0.layer_norm1", "lm_head", "model.multi_modal_projector.linear_1",
]


def keys_of_layouts(root):
    """Adapters of PEFT under the keys of other layouts, each with the values that it has learned."""
    folder = root / "layouts"
    folder.mkdir()
    base = "llava"

    def add(name, tuned, rules, model=base, back=(), **settings):
        tuned.save_pretrained(folder / "now")
        values = tuned_values(tuned)
        for pattern, replacement in back:
            values = {re.sub(pattern, replacement, key): tensor for key, tensor in values.items()}
        renamed(folder / "now", folder / name, rules, **settings)
        save_file(values, folder / name / "values.st")
        (folder / name / "model.txt").write_text(model)

    seeing = trained(build(base), target_modules=SEEING)
    for name, rules in [("former", FORMER), ("without_level", WITHOUT_LEVEL), ("between", BETWEEN)]:
        add(name, seeing, rules)
    default = trained(build(base))
    add("default_former", default, FORMER)
    add("default_first", default, FIRST, target_modules=[*NORMS, "embed_tokens", "lm_head", "mm_projector"])
    paths = trained(build(base), target_modules=PRESENT)
    add("paths", paths, FORMER, target_modules=PATHS)
    pattern = trained(build(base), target_modules=r"model\.language_model\.layers\.1\..*norm")
    add("pattern", pattern, FORMER, target_modules=r"language_model\.model\.layers\.1\..*norm")
    whole = trained(build(base), target_modules=["norm"], modules_to_save=["lm_head", "linear_2"])
    add("whole", whole, FORMER, modules_to_save=["language_model.lm_head", "linear_2"])
    gemma = trained(build("gemma3"), target_modules=[*NORMS, "multi_modal_projector", "layer_norm1"])
    add("gemma3", gemma, FORMER, "gemma3")
    qwen = trained(build("qwen2_5_vl"), target_modules=[*NORMS, "norm1", "ln_q"])
    add("qwen2_5_vl", qwen, [(r"^model\.language_model", "model"), (r"^model\.visual", "visual")], "qwen2_5_vl")

    # Of a part alone, as PEFT writes it for such a model.
    config = build(base).config
    torch.manual_seed(2)
    text = LlamaForCausalLM(config.text_config)
    text.save_pretrained(root / "text")
    below = [(r"^", "model.language_model.")]
    bare = trained(LlamaForCausalLM.from_pretrained(root / "text").model, target_modules=NORMS)
    add("bare_text", bare, [], back=below)
    words = trained(text, target_modules=[*NORMS, "embed_tokens", "lm_head"])
    add("text", words, [], back=[(r"^model\.", "model.language_model.")])
    tower = trained(CLIPVisionModel(config.vision_config), target_modules=["layer_norm1", "layer_norm2"])
    add("tower", tower, [], back=[(r"^", "model.vision_tower.")])
    add("former_tower", tower, [(r"^", "vision_model.")], back=[(r"^", "model.vision_tower.")])
    add("former_tower_alone", tower, [(r"^", "vision_model.")], "tower_alone")
    tower.unload().save_pretrained(root / "tower_alone")
    # Of the class without a head.
    add("headless", trained(build(base).model, target_modules=SEEING), [], back=[(r"^", "model.")])
    # Not of images and texts: a ViT of transformers 4.
    torch.manual_seed(3)
    vit = ViTForImageClassification(ViTConfig(**VISION, num_labels=2))
    vit.save_pretrained(root / "vit")
    vit = trained(vit, target_modules=["layernorm_before", "vit.layernorm"], modules_to_save=["classifier"])
    add("vit", vit, [(r"^vit\.layers\.", "vit.encoder.layer.")], "vit")
    only_text = trained(build(base), target_modules=NORMS)
    for name, rules in [("only_text", []), ("former_only_text", FORMER)]:
        add(name, only_text, rules, "text", back=[(r"^model\.language_model\.", "model.")])
    idefics = trained(build("idefics3"), target_modules=r"model\.text_model\..*norm")
    add("idefics3_text", idefics, [(r"^model\.text_model\.", "model.")], "idefics3", target_modules=NORMS)
    # PEFT leaves the model as it is, with one warning.
    before = logits(base, build(base))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        lost = PeftModel.from_pretrained(build(base), str(folder / "former"))
    assert any("missing adapter keys" in str(warning.message) for warning in warned)
    assert torch.equal(logits(base, lost), before), "PEFT loads adapters of former layouts now"


def make(root):
    for name in MODELS:
        model = build(name)
        model.save_pretrained(root / name)
        (root / name / "unused.json").write_text(json.dumps(without_gradient(name, model)))
    for name in ("llava", "llava_tied"):
        tuned = trained(build(name))
        tuned.save_pretrained(root / name / "peft")
        found = {"logits": logits(name, tuned), **inputs(name)}
        save_file(found, root / name / "reference.st")
        save_file(tuned_values(tuned), root / name / "values.st")
        leaves = {key.rpartition(".")[0] for key in tuned_values(tuned)}
        (root / name / "peft.json").write_text(json.dumps(sorted(leaves)))
    keys_of_layouts(root)


def quiet(function):
    """Every warning is an error, but for those that this pair of versions gives for PEFT's own adapters as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for message in ("Unsupported layer type", "`is_gradient_checkpointing`", "Model has `tie_word_embeddings"):
            warnings.filterwarnings("ignore", message=message)
        return function()


def check(root):
    for name in TRIED:
        for folder in sorted((root / name).glob("ours_*")):
            tuned = quiet(lambda: PeftModel.from_pretrained(build(name), str(folder))).eval()
            found = {}
            for key, tensor in tuned.named_parameters():
                if ".ln_tuning_layers.default." in key:
                    plain = key.removeprefix("base_model.model.").replace(".ln_tuning_layers.default.", ".")
                    found[plain] = tensor
            ours = load_file(folder / "values.st")
            assert sorted(found) == sorted(ours), f"{name} {folder.name}: {sorted(set(found) ^ set(ours))}"
            for key, tensor in ours.items():
                assert torch.equal(tensor, found[key]), f"{name} {folder.name}: {key}"
            merged = root / f"merged_{name}"
            if folder.name == "ours_layernorm":
                model = type(build(name)).from_pretrained(merged).eval()
                difference = (logits(name, model) - logits(name, tuned)).abs().max().item()
                assert difference <= 1e-5, f"{name} {folder.name}: merged by us it is {difference} off"
            print(name, folder.name, "ok")


{"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
