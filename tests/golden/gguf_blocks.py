"""Writes `gguf/blocks.safetensors`: what the `gguf` package makes of weights and of random blocks.

usage: python gguf_blocks.py    (gguf 0.19, safetensors, numpy)

values              f32 weights: of several scales, zeros, ties of the largest magnitude, halves between two integers
quantized.TYPE      the bytes of `values` in each type that is written
blocks.TYPE         random blocks of each type that is read, with scales that are numbers
dequantized.TYPE    their f32 values
"""

import sys
from pathlib import Path

# `gguf.py` beside this file has the package's name.
HERE = Path(sys.path.pop(0)).resolve()

import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

RNG = np.random.default_rng(7)
# Where the f16 scales of a block lie.
SCALES = {Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q5_1: [0, 2], Q.Q8_0: [0], Q.Q2_K: [80, 82], Q.Q3_K: [108],
          Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}


def weights():
    rows = [RNG.normal(scale=scale, size=32) for scale in (1.0, 1e-3, 1e3, 1e-6) for _ in range(6)]
    rows += [np.zeros(32), np.r_[np.zeros(31), -2.0], np.tile([1.0, -1.0], 16), np.tile([-1.0, 1.0], 16)]
    # d = 1 in eight bits and in four: halves are rounded away from zero, and up.
    rows += [np.r_[127.0, -np.arange(31) - 0.5], np.r_[-8.0, np.arange(-15, 16) / 2]]
    return np.array(rows, dtype=np.float32)


def blocks(kind):
    size, length = GGML_QUANT_SIZES[kind]
    raw = RNG.integers(0, 256, size=(4, length), dtype=np.uint8)
    for at in SCALES.get(kind, []):
        raw[:, at:at + 2] = RNG.normal(scale=0.1, size=(4, 1)).astype(np.float16).view(np.uint8)
    if kind != Q.Q8_K:
        return raw, dequantize(raw, kind)
    # An f32 scale, 256 int8, sums that only products use; the package has no reader for it.
    raw[:, :4] = RNG.normal(scale=0.1, size=(4, 1)).astype(np.float32).view(np.uint8)
    return raw, raw[:, :4].copy().view(np.float32) * raw[:, 4:260].copy().view(np.int8).astype(np.float32)


values = weights()
out = {"values": values}
for kind in (Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0):
    out[f"quantized.{kind.name}"] = quantize(values, kind).view(np.uint8)
for kind in (Q.F32, Q.F16, Q.BF16):
    stored = quantize(RNG.normal(size=(4, 8)).astype(np.float32), kind)
    out[f"blocks.{kind.name}"], out[f"dequantized.{kind.name}"] = stored.view(np.uint8), dequantize(stored, kind)
for kind in (*SCALES, Q.Q8_K):
    raw, dequantized = blocks(kind)
    out[f"blocks.{kind.name}"], out[f"dequantized.{kind.name}"] = raw, dequantized.astype(np.float32)
save_file({name: np.ascontiguousarray(array) for name, array in out.items()}, HERE / "gguf" / "blocks.safetensors")
