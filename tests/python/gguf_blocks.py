"""Writes a GGUF file with random blocks of every type, and the weights that the gguf package computes from them.

python gguf_blocks.py OUT SEED
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

out = Path(sys.argv[1])
rng = np.random.default_rng(int(sys.argv[2]))

PLAIN = {
    Type.F32: np.float32,
    Type.F16: np.float16,
    Type.F64: np.float64,
    Type.I8: np.int8,
    Type.I16: np.int16,
    Type.I32: np.int32,
    Type.I64: np.int64,
}
# The places of the f16 in a block.
HALVES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
    Type.IQ4_NL: [0],
    Type.IQ4_XS: [0],
}
# Zero, the least denormal, other denormals, the least normal number, one, and the largest; all with both signs.
EXTREMES = np.array([0, 1, 2, 0x3FF, 0x400, 0x3C00, 0x7BFF], dtype=np.uint16)


def shapes(block):
    """One row, more rows than a group of numpy's, three dimensions, and more blocks than are computed at a time."""
    return [(block,), (37, 2 * block), (3, 5, block), (9, 3 * block * (8192 // block))]


def blocks(kind, shape, extreme):
    size, bytes_ = gguf.GGML_QUANT_SIZES[kind]
    count = int(np.prod(shape)) // size
    data = rng.integers(0, 256, (count, bytes_), dtype=np.uint8)
    for at in HALVES[kind]:
        if extreme:
            halves = rng.choice(EXTREMES, count) | (rng.integers(0, 2, count, dtype=np.uint16) << 15)
        else:
            halves = rng.integers(0, 1 << 16, count, dtype=np.uint16)
            halves = np.where(halves & 0x7C00 == 0x7C00, halves ^ 0x4000, halves)
        data[:, at : at + 2] = halves.astype("<u2").view(np.uint8).reshape(count, 2)
    return data.reshape(*shape[:-1], shape[-1] // size * bytes_)


writer = gguf.GGUFWriter(str(out / "blocks.gguf"), "llama")
expected = []
with open(out / "expected.bin", "wb") as file:

    def expect(name, kind, shape, values):
        expected.append({"name": name, "type": kind.name, "shape": list(shape)})
        file.write(values.tobytes())

    for kind, numbers in PLAIN.items():
        for i, shape in enumerate(shapes(1)[:3]):
            width = np.dtype(numbers).itemsize
            raw = rng.integers(0, 256, (*shape[:-1], shape[-1] * width), dtype=np.uint8)
            values = raw.view(numbers)
            if kind in (Type.F32, Type.F16, Type.F64):
                values = np.nan_to_num(values)
            writer.add_tensor(f"{kind.name}.{i}", values, raw_dtype=kind)
            expect(f"{kind.name}.{i}", kind, shape, values)
    for i, shape in enumerate(shapes(1)[:3]):
        raw = rng.integers(0, 1 << 14, shape, dtype=np.uint16)
        writer.add_tensor(f"BF16.{i}", raw.view(np.uint8), raw_dtype=Type.BF16)
        expect(f"BF16.{i}", Type.BF16, shape, raw)
    for kind in HALVES:
        for i, shape in enumerate(shapes(gguf.GGML_QUANT_SIZES[kind][0])):
            for extreme in (False, True):
                data = blocks(kind, shape, extreme)
                name = f"{kind.name}.{i}.{extreme}"
                writer.add_tensor(name, data, raw_dtype=kind)
                expect(name, kind, shape, gguf.quants.dequantize(data, kind).astype(np.float32))

# One value of each type, and arrays.
writer.add_uint8("u8", 200)
writer.add_int8("i8", -100)
writer.add_uint16("u16", 60000)
writer.add_int16("i16", -30000)
writer.add_uint32("u32", 4000000000)
writer.add_int32("i32", -2000000000)
writer.add_float32("f32", 0.1)
writer.add_bool("bool", True)
writer.add_string("string", "né 🦀")
writer.add_uint64("u64", 1 << 63)
writer.add_int64("i64", -(1 << 62))
writer.add_float64("f64", 0.1)
writer.add_array("strings", ["", "a", "né"])
writer.add_array("integers", [1, -2, 3])
writer.add_array("numbers", [0.5, -1.5])
writer.add_array("flags", [True, False])
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
(out / "expected.json").write_text(json.dumps(expected))
