"""NF4 as bitsandbytes computes it, from its published table and decisions, a number at a time.

Reads DIR/weights.st, and writes DIR/nf4.st: for each tensor its codes, its largest absolute values and its values.
"""

import sys

import numpy as np
from safetensors.numpy import load_file, save_file

CODE = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], dtype=np.float32)
F = np.float32


def code(x):
    if x > F(0.03979014977812767):
        if x > F(0.3893125355243683):
            if x > F(0.6427869200706482):
                return 15 if x > F(0.8614784181118011) else 14
            return 13 if x > F(0.5016634166240692) else 12
        if x > F(0.2035212516784668):
            return 11 if x > F(0.2920137718319893) else 10
        return 9 if x > F(0.1202552504837513) else 8
    if x > F(-0.33967943489551544):
        if x > F(-0.13791173323988914):
            return 7 if x > F(-0.045525018125772476) else 6
        return 5 if x > F(-0.23460740596055984) else 4
    if x > F(-0.6106329262256622):
        return 3 if x > F(-0.4599952697753906) else 2
    return 1 if x > F(-0.8480964004993439) else 0


def main(place):
    out = {}
    for name, weights in load_file(f"{place}/weights.st").items():
        flat = weights.reshape(-1)
        blocks = [flat[at:at + 64] for at in range(0, flat.size, 64)]
        absmax = np.array([np.abs(block).max() for block in blocks], dtype=np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.concatenate([block * (F(1) / most) for block, most in zip(blocks, absmax)])
        codes = np.array([code(x) for x in scaled], dtype=np.uint8)
        values = CODE[codes] * np.repeat(absmax, 64)[:flat.size]
        even = np.append(codes, np.zeros(codes.size % 2, dtype=np.uint8))
        out[f"{name}.packed"] = even[::2] << 4 | even[1::2]
        out[f"{name}.absmax"] = absmax
        out[f"{name}.values"] = values.reshape(weights.shape)
    save_file(out, f"{place}/nf4.st")


main(sys.argv[1])
