"""`images.py DIR`: a tiny random ViT, and pictures of its size in the formats and kinds that PIL reads, in a folder for each
class: `exact/` without loss, `lossy/`, and `sizes/` in other sizes. Prints the loss of transformers on each, by the name of
the way in which it is prepared; the model for that way is in `model-NAME/`.
"""

import json
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import BitImageProcessorPil, ViTConfig, ViTForImageClassification, ViTImageProcessorPil
from transformers.image_utils import load_image

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
SIZE = 16
random = np.random.default_rng(0)


def noise(*channels):
    return random.integers(0, 256, (SIZE, SIZE, *channels), dtype=np.uint8)


def smooth():
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    return Image.fromarray(np.stack([x * 12 + 20, y * 13 + 10, (x + y) * 6 + 30], -1).astype(np.uint8))


def png(path, values, depth, colour, before=(), behind=()):
    """What PIL cannot write: 16 bits of colour, grey of 2 and 4 bits, other chunks before and behind the pixels."""
    rows = [np.asarray(row).tobytes() for row in values]
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    chunks = lambda chosen: b"".join(chunk(*one) for one in chosen)
    head = struct.pack(">IIBBBBB", SIZE, SIZE, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    body = chunks(before) + chunk(b"IDAT", data) + chunks(behind)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b""))


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def exact(folder):
    rgb, rgba = Image.fromarray(noise(3)), Image.fromarray(noise(4))
    la, grey = Image.fromarray(noise(2)), Image.fromarray(noise())
    palette = rgb.quantize(16)
    other = Image.fromarray(noise(3))
    for name, image in dict(rgb=rgb, rgba=rgba, la=la, grey=grey, palette=palette, bit=grey.convert("1")).items():
        image.save(folder / f"{name}.png")
    palette.save(folder / "palette_transparent.png", transparency=3)
    palette.save(folder / "palette_alphas.png", transparency=bytes(range(0, 160, 10)))
    rgb.save(folder / "rgb_transparent.png", transparency=rgb.getpixel((3, 3)))
    rgb.save(folder / "frames.png", save_all=True, append_images=[other])
    Image.fromarray(random.integers(0, 600, (SIZE, SIZE), dtype=np.uint16)).save(folder / "grey16.png")
    for name, channels, colour in (("rgb16", 3, 2), ("la16", 2, 4), ("rgba16", 4, 6)):
        png(folder / f"{name}.png", random.integers(0, 65536, (SIZE, SIZE * channels)).astype(">u2"), 16, colour)
    png(folder / "grey2.png", noise()[:, : SIZE // 4], 2, 0)
    png(folder / "grey4.png", noise()[:, : SIZE // 2], 4, 0)
    exif = turned(6).tobytes()
    profile = b"\nexif\n%8d\n%s\n%s\n" % (len(exif), exif.hex()[:72].encode(), exif.hex()[72:].encode())
    key = b"Raw profile type exif\0"
    png(folder / "exif_behind.png", np.asarray(rgb), 8, 2, behind=[(b"eXIf", exif.removeprefix(b"Exif\0\0"))])
    png(folder / "exif_text.png", np.asarray(rgb), 8, 2, before=[(b"tEXt", key + profile)])
    png(folder / "exif_packed.png", np.asarray(rgb), 8, 2, behind=[(b"zTXt", key + b"\0" + zlib.compress(profile))])
    for orientation in range(1, 9):
        rgb.save(folder / f"turned{orientation}.png", exif=turned(orientation))
    rgb.save(folder / "turned0.png", exif=turned(0))
    rgb.save(folder / "turned9.png", exif=turned(9))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    rgb.save(folder / "xmp6.webp", lossless=True, xmp=xmp)
    rgb.save(folder / "exif1_xmp6.webp", lossless=True, xmp=xmp, exif=turned(1))
    rgb.save(folder / "UPPER.PNG")
    rgb.save(folder / "without", format="PNG")
    rgb.save(folder / "png.jpg", format="PNG")
    for name, image in dict(rgb=rgb, rgba=rgba).items():
        image.save(folder / f"{name}.webp", lossless=True, exact=True)
    rgb.save(folder / "turned6.webp", lossless=True, exif=turned(6))
    rgb.save(folder / "frames.webp", lossless=True, save_all=True, append_images=[other])
    palette.save(folder / "palette.gif")
    palette.save(folder / "transparent.gif", transparency=3)
    palette.save(folder / "frames.gif", save_all=True, append_images=[other.quantize(16)])
    grey.save(folder / "grey.gif")
    for name, image in dict(rgb=rgb, rgba=rgba, grey=grey, palette=palette, bit=grey.convert("1")).items():
        image.save(folder / f"{name}.bmp")
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits"):
        rgb.save(folder / f"{compression}.tiff", compression=compression)
    for name, image in dict(rgba=rgba, grey=grey, bit=grey.convert("1")).items():
        image.save(folder / f"{name}.tif")
    rgb.save(folder / "turned5.tiff", exif=turned(5))
    rgb.save(folder / "frames.tiff", save_all=True, append_images=[other])
    rgb.save(folder / "rgb.ppm")
    grey.save(folder / "grey.pgm")


def lossy(folder):
    image = smooth()
    for name, options in dict(plain={}, progressive=dict(progressive=True), full=dict(subsampling=0)).items():
        image.save(folder / f"{name}.jpg", quality=95, **options)
    for orientation in (3, 6):
        image.save(folder / f"turned{orientation}.JPEG", quality=95, exif=turned(orientation))
    image.save(folder / "xmp8.jpg", quality=95, xmp=b"<tiff:Orientation>8</tiff:Orientation>")
    image.convert("L").save(folder / "grey.jfif", format="JPEG", quality=95)
    image.convert("CMYK").save(folder / "cmyk.jpe", format="JPEG", quality=95)
    image.convert("CMYK").save(folder / "cmyk.tif")
    image.save(folder / "plain.webp", quality=95)
    image.save(folder / "turned8.webp", quality=95, exif=turned(8))


def sizes(folder):
    for width, height in ((40, 29), (9, 11), (16, 48), (17, 16), (100, 7), (1, 1)):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{width}x{height}.png")


def main(directory):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=SIZE, patch_size=4,
        initializer_range=0.2, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1},
    )
    model = ViTForImageClassification(config).eval()
    plain = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})
    losses = {}
    for make in (exact, lossy, sizes):
        folders = [directory / make.__name__ / name for name in "ab"]
        for folder in folders:
            folder.mkdir(parents=True)
        make(folders[0])
        smooth().save(folders[1] / "smooth.png")
    ways = {f"resample{number}": ViTImageProcessorPil(size=plain.size, resample=number) for number in (1, 2, 5)}
    ways["crop"] = BitImageProcessorPil(size={"shortest_edge": 20}, crop_size=plain.size, resample=3)
    for name, processor, kind in [
        ("exact", plain, "exact"), ("lossy", plain, "lossy"), *((name, way, "sizes") for name, way in ways.items()),
    ]:
        model.save_pretrained(directory / f"model-{name}")
        processor.save_pretrained(directory / f"model-{name}")
        losses[name] = {}
        for label, folder in enumerate("ab"):
            for path in (directory / kind / folder).iterdir():
                pixels = processor(load_image(str(path)), return_tensors="pt").pixel_values
                with torch.no_grad():
                    loss = model(pixels, labels=torch.tensor([label])).loss
                losses[name][f"{folder}/{path.name}"] = float(loss)
    print(json.dumps(losses))


main(Path(sys.argv[1]))
