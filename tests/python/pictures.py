"""`pictures.py DIR`: real pictures of odd sizes and kinds in `DIR/exact` and `DIR/lossy`, image processors in a folder each in
`DIR/processors`, and what they make of the pictures of `exact` in `DIR/pixels.safetensors` ("processor/picture"), with
the bytes that PIL decodes of all of them ("rgb/picture"). Prints the rows and columns of tiles.
"""

import json
import struct
import sys
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits, load_sample_images
from transformers import (
    AutoImageProcessor,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
    SmolVLMImageProcessorPil,
    ViTImageProcessorPil,
)
from transformers.image_utils import load_image

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")

CHINA, FLOWER = (Image.fromarray(image) for image in load_sample_images().images)
DIGITS = load_digits().images
PLAIN = dict(do_rescale=False, do_normalize=False)


def scene(rows, columns):
    """Digits beside each other."""
    cells = [[DIGITS[row * columns + column] for column in range(columns)] for row in range(rows)]
    return Image.fromarray((np.block(cells) * 15).astype(np.uint8))


def part(image, width, height, left=100, top=150):
    return image.crop((left, top, left + width, top + height))


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def exact(folder):
    alpha = part(FLOWER, 61, 43)
    alpha.putalpha(part(CHINA, 61, 43).convert("L"))
    wide = np.asarray(scene(3, 5)).astype(np.uint16) * 3
    frames = [part(CHINA, 37, 29, left) for left in (0, 200)]
    for name, image in {
        "photograph": part(CHINA, 97, 131), "small": part(FLOWER, 23, 19), "line": part(CHINA, 1, 57), "row": part(FLOWER, 83, 1),
        "long": part(CHINA, 301, 7), "high": part(FLOWER, 9, 140), "one": part(CHINA, 1, 1), "digits": scene(3, 7),
        "bit": scene(2, 3).convert("1"), "palette": part(FLOWER, 50, 33).quantize(20), "alpha": alpha, "two": alpha.convert("LA"),
        "grey16": Image.fromarray(wide), "square": part(CHINA, 30, 30), "even": part(FLOWER, 60, 40),
    }.items():
        image.save(folder / f"{name}.png")
    colours = part(FLOWER, 19, 11)
    wide = np.asarray(colours).astype(np.uint16) * 251 + 7
    (folder / "rgb16.ppm").write_bytes(b"P6\n19 11\n65535\n" + wide.astype(">u2").tobytes())
    # Grey of 16 bits, of which one shade is transparent.
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide[:, :, 1] // 90)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 19, 11, 16, 0, 0, 0, 0)) + chunk(b"tRNS", b"\0\1")
    body = head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (folder / "grey16_transparent.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    frames[0].save(folder / "frames.png", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "frames.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "frames.webp", save_all=True, append_images=frames[1:], lossless=True)
    for orientation in range(2, 9):
        part(CHINA, 41, 27).save(folder / f"turned{orientation}.tiff", exif=turned(orientation))


def lossy(folder):
    picture = part(CHINA, 150, 101)
    for name, options in {
        "plain": {}, "full": dict(subsampling=0), "wide": dict(subsampling=1), "progressive": dict(progressive=True), "poor": dict(quality=20),
        "restarts": dict(restart_marker_blocks=3), "narrow_colour": dict(subsampling="4:1:1"),
    }.items():
        picture.save(folder / f"{name}.jpg", **{"quality": 90, **options})
    for orientation in range(1, 9):
        picture.save(folder / f"turned{orientation}.jpg", quality=90, exif=turned(orientation))
    picture.convert("L").save(folder / "grey.jpg", quality=90)
    part(FLOWER, 1, 63).save(folder / "line.jpg", quality=90)
    part(FLOWER, 63, 1).save(folder / "row.jpg", quality=90)
    part(CHINA, 3, 120).save(folder / "narrow.jpg", quality=75)
    CHINA.save(folder / "photograph.jpg", quality=75)
    bytes = BytesIO()
    picture.convert("CMYK").save(bytes, "JPEG", quality=90)
    inverted = bytes.getvalue()
    (folder / "cmyk.jpg").write_bytes(inverted)
    # Without Adobe's mark, readers go by the number of channels.
    at = inverted.index(b"\xff\xee")
    length = int.from_bytes(inverted[at + 2 : at + 4], "big")
    (folder / "cmyk_unmarked.jpg").write_bytes(inverted[:at] + inverted[at + 2 + length :])
    # With the mark of the other form, in which the first three channels are brightness and colour.
    (folder / "ycck.jpg").write_bytes(inverted[: at + 2 + length - 1] + b"\2" + inverted[at + 2 + length :])
    picture.save(folder / "plain.webp", quality=90)


PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size=30),
    "clip_number": CLIPImageProcessorPil(size=31, crop_size={"height": 23, "width": 40}, resample=2),
    "bit": BitImageProcessorPil(size={"shortest_edge": 33}, crop_size=28, image_mean=[0.485, 0.456, 0.406]),
    "llava": LlavaImageProcessorPil(size={"shortest_edge": 28}, crop_size=28, do_pad=True),
    "llava_plain": LlavaImageProcessorPil(size={"shortest_edge": 28}, crop_size=28),
    "llava_next": LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=16, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]],
    ),
    "llava_next_odd": LlavaNextImageProcessorPil(
        size={"height": 21, "width": 13}, crop_size={"height": 14, "width": 10}, image_grid_pinpoints=[[14, 42], [56, 28]], **PLAIN,
    ),
    "qwen": Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 400, "longest_edge": 3000}),
    "qwen_large": Qwen2VLImageProcessorPil(
        patch_size=5, merge_size=3, temporal_patch_size=1, min_pixels=5000, max_pixels=9000, image_mean=[0.5] * 3, image_std=[0.5] * 3,
    ),
    "siglip": SiglipImageProcessorPil(size={"height": 31, "width": 29}),
    "vit": ViTImageProcessorPil(size=32),
    "gemma3": Gemma3ImageProcessorPil(size={"height": 30, "width": 30}),
    "uncut": CLIPImageProcessorPil(size={"shortest_edge": 20}, do_center_crop=False, **PLAIN),
    "between": CLIPImageProcessorPil(size={"shortest_edge": 20, "longest_edge": 45}, do_center_crop=False, **PLAIN),
    "within": SiglipImageProcessorPil(size={"max_height": 25, "max_width": 40}, **PLAIN),
    "cut": CLIPImageProcessorPil(do_resize=False, crop_size=25, do_normalize=False),
    "padded": SiglipImageProcessorPil(size={"height": 20, "width": 17}, do_pad=True, pad_size={"height": 24, "width": 20}),
    "unscaled": ViTImageProcessorPil(size=16, do_rescale=False, image_mean=[120, 110, 100], image_std=[50, 60, 70.5]),
    "factor": ViTImageProcessorPil(size=16, rescale_factor=1 / 127.5, image_mean=1.0, image_std=0.7),
    "idefics3": Idefics3ImageProcessorPil(size={"longest_edge": 60}, max_image_size={"longest_edge": 26}),
    "smolvlm": SmolVLMImageProcessorPil(size={"longest_edge": 48}, max_image_size={"longest_edge": 24}, resample=3),
    "smolvlm_whole": SmolVLMImageProcessorPil(size={"longest_edge": 50}, max_image_size={"longest_edge": 24}, do_image_splitting=False),
    "smolvlm_as_is": SmolVLMImageProcessorPil(do_resize=False, max_image_size={"longest_edge": 40}),
    "grey": ViTImageProcessorPil(size={"height": 21, "width": 27}, image_mean=[0.3], image_std=[0.2]),
    **{f"resample{way}": ViTImageProcessorPil(size={"height": 27, "width": 22}, resample=way, **PLAIN) for way in range(6)},
}

# As people have them: former names, null, which turns off what the class has, and numbers.
FILES = {
    "off": {
        "image_processor_type": "CLIPImageProcessorFast", "size": [20, 31], "crop_size": 18, "do_center_crop": None,
        "do_rescale": None, "do_normalize": None, "resample": 0,
    },
    "former": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 24, "crop_size": 20, "do_convert_rgb": None},
    "next": {
        "image_processor_type": "LlavaNextImageProcessor", "size": 12, "crop_size": 12, "image_grid_pinpoints": [[12, 24], [36, 12]],
        "do_resize": False, "do_pad": False,
    },
    "qwen_former": {
        "image_processor_type": "Qwen2VLImageProcessorFast", "min_pixels": 2000, "max_pixels": 5000, "size": None, "patch_size": 7,
        "resample": 2, "do_normalize": False,
    },
    "square": {"size": 24, "do_resize": True, "resample": 2},
}


def main(directory):
    tensors, tiles = {}, {}
    for make in (exact, lossy):
        folder = directory / make.__name__
        folder.mkdir(parents=True)
        make(folder)
        for path in folder.iterdir():
            pixels = torch.from_numpy(np.asarray(load_image(str(path))).copy())
            tensors[f"rgb/{make.__name__}/{path.name}"] = pixels.permute(2, 0, 1).contiguous()
    processors = dict(PROCESSORS)
    for name, processor in PROCESSORS.items():
        processor.save_pretrained(directory / "processors" / name)
    for name, settings in FILES.items():
        folder = directory / "processors" / name
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "vit"}')
        newer = {"processor_class": "LlavaProcessor", "image_processor": settings}
        (folder / "processor_config.json").write_text(json.dumps(newer if name == "off" else {}))
        (folder / "preprocessor_config.json").write_text(json.dumps(settings if name != "off" else {}))
        processors[name] = AutoImageProcessor.from_pretrained(folder, backend="pil")
    for name, processor in processors.items():
        for path in (directory / "exact").iterdir():
            image, key = load_image(str(path)), f"{name}/{path.name}"
            kwargs = {}
            if name == "grey":
                image = image.convert("L")
            if isinstance(processor, (Idefics3ImageProcessorPil, SmolVLMImageProcessorPil)):
                kwargs["return_row_col_info"] = True
            try:
                made = processor(image, return_tensors="pt", **kwargs)
            except ValueError as error:
                # No pixel is left of it, or there are more than there is room for.
                tiles[key] = str(error)
                continue
            if kwargs:
                assert made.pixel_attention_mask.min() == 1
                tiles[key] = [made["rows"][0][0], made["cols"][0][0]]
            values = made.pixel_values.float()
            tensors[key] = (values if values.dim() == 2 else values.flatten(0, -4)).contiguous()
            for size in {"image_sizes", "image_grid_thw"} & made.keys():
                tiles[key] = made[size][0].tolist()[-2:]
    save_file(tensors, directory / "pixels.safetensors")
    print(json.dumps(tiles))


main(Path(sys.argv[1]))
