"""Writes a GGUF file with the shape of a known model of several billion weights and random blocks in Q4_0 or Q8_0.

usage: gguf_shapes.py qwen2.5-7b|llama-3.1-8b q4_0|q8_0 TOKENIZER.gguf OUT.gguf

The tokenizer is that of another GGUF file of a llama model; its vocabulary is filled up to the shape's with names of no use, so that
the embedding and the head have their real size. Values are those of weights of a standard deviation of about 0.02.
"""

import random
import struct
import sys
from pathlib import Path

SHAPES = {
    "qwen2.5-7b": {
        "arch": "qwen2", "block_count": 28, "embedding_length": 3584, "feed_forward_length": 18944, "head_count": 28,
        "head_count_kv": 4, "rope_base": 1e6, "vocab": 152064, "bias": True,
    },
    "llama-3.1-8b": {
        "arch": "llama", "block_count": 32, "embedding_length": 4096, "feed_forward_length": 14336, "head_count": 32,
        "head_count_kv": 8, "rope_base": 5e5, "vocab": 128256, "bias": False,
    },
}  # fmt: skip
ALIGNMENT = 32
F32, Q4_0, Q8_0 = 0, 2, 8
TYPES = {"q4_0": (Q4_0, 18), "q8_0": (Q8_0, 34)}  # number of the type, bytes of a block of 32 weights
DRAWN = 1 << 16  # random blocks; every tensor is made of them from another offset
U32, F32_VALUE, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def read_metadata(path):
    """Yields key and value (type number and raw bytes) of every entry in a GGUF file."""
    data = Path(path).read_bytes()
    _, _, tensors, entries = struct.unpack_from("<4sIQQ", data)
    assert data[:4] == b"GGUF", f"{path} is no GGUF file"
    at = 24
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def string_end(at):
        return at + 8 + struct.unpack_from("<Q", data, at)[0]

    def value_end(kind, at):
        if kind == STRING:
            return string_end(at)
        if kind != ARRAY:
            return at + sizes[kind]
        inner, count = struct.unpack_from("<IQ", data, at)
        at += 12
        if inner != STRING:
            return at + count * sizes[inner]
        for _ in range(count):
            at = string_end(at)
        return at

    for _ in range(entries):
        end = string_end(at)
        key = data[at + 8 : end].decode()
        (kind,) = struct.unpack_from("<I", data, end)
        start, at = end + 4, value_end(kind, end + 4)
        yield key, kind, data[start:at]


def filled(key, raw, count):
    """The array `raw` of the tokenizer with `count` entries."""
    inner, length = struct.unpack_from("<IQ", raw)
    assert length <= count, f"the tokenizer has {length} tokens, more than {count}"
    more = {
        "tokenizer.ggml.tokens": lambda i: text(f"<|unused {i}|>"),
        "tokenizer.ggml.token_type": lambda _: struct.pack("<i", 4),
        "tokenizer.ggml.scores": lambda _: struct.pack("<f", 0.0),
    }[key]
    return struct.pack("<IQ", inner, count) + raw[12:] + b"".join(more(i) for i in range(length, count))


def metadata(shape, tokenizer):
    """Keys, type numbers and bytes of the file's metadata."""
    arch = shape["arch"]
    yield "general.architecture", STRING, text(arch)
    for key in ("block_count", "embedding_length", "feed_forward_length"):
        yield f"{arch}.{key}", U32, struct.pack("<I", shape[key])
    for key in ("head_count", "head_count_kv"):
        yield f"{arch}.attention.{key}", U32, struct.pack("<I", shape[key])
    yield f"{arch}.context_length", U32, struct.pack("<I", 8192)
    yield f"{arch}.vocab_size", U32, struct.pack("<I", shape["vocab"])
    yield f"{arch}.attention.layer_norm_rms_epsilon", F32_VALUE, struct.pack("<f", 1e-6)
    yield f"{arch}.rope.freq_base", F32_VALUE, struct.pack("<f", shape["rope_base"])
    arrays = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.scores")
    for key, kind, raw in read_metadata(tokenizer):
        if key.startswith("tokenizer."):
            yield key, kind, filled(key, raw, shape["vocab"]) if key in arrays else raw


def tensors(shape):
    """Name and shape (rows, columns; or length) of every tensor."""
    d, f = shape["embedding_length"], shape["feed_forward_length"]
    keys = d // shape["head_count"] * shape["head_count_kv"]
    yield "token_embd.weight", (shape["vocab"], d)
    for layer in range(shape["block_count"]):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (d,)
        for name, rows in (("q", d), ("k", keys), ("v", keys)):
            yield f"{block}attn_{name}.weight", (rows, d)
            if shape["bias"]:
                yield f"{block}attn_{name}.bias", (rows,)
        yield block + "attn_output.weight", (d, d)
        yield block + "ffn_norm.weight", (d,)
        yield block + "ffn_gate.weight", (f, d)
        yield block + "ffn_up.weight", (f, d)
        yield block + "ffn_down.weight", (d, f)
    yield "output_norm.weight", (d,)
    yield "output.weight", (shape["vocab"], d)


def main():
    if len(sys.argv) != 5 or sys.argv[1] not in SHAPES or sys.argv[2] not in TYPES:  # noqa: PLR2004
        raise SystemExit(__doc__)
    shape, (kind, block_bytes) = SHAPES[sys.argv[1]], TYPES[sys.argv[2]]
    rng = random.Random(0)
    scale = struct.pack("<e", 0.02 / (4.6 if kind == Q4_0 else 74))
    blocks = b"".join(scale + rng.randbytes(block_bytes - 2) for _ in range(DRAWN))

    def size(dims):
        return 4 * dims[0] if len(dims) == 1 else dims[0] * dims[1] // 32 * block_bytes

    entries, infos, offset = list(metadata(shape, sys.argv[3])), [], 0
    for name, dims in tensors(shape):
        of_tensor = F32 if len(dims) == 1 else kind
        dims_text = struct.pack(f"<I{len(dims)}Q", len(dims), *reversed(dims))
        infos.append(text(name) + dims_text + struct.pack("<IQ", of_tensor, offset))
        offset += -(-size(dims) // ALIGNMENT) * ALIGNMENT
    with Path(sys.argv[4]).open("wb") as out:
        out.write(struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(entries)))
        for key, of_value, raw in entries:
            out.write(text(key) + struct.pack("<I", of_value) + raw)
        for info in infos:
            out.write(info)
        out.write(b"\0" * (-out.tell() % ALIGNMENT))
        for i, (_, dims) in enumerate(tensors(shape)):
            left = size(dims)
            padding = -left % ALIGNMENT
            if len(dims) == 1:
                out.write(struct.pack(f"<{dims[0]}f", *([1.0] * dims[0])))
                left = 0
            start = i * 7919 % DRAWN * block_bytes
            while left:
                part = blocks[start : start + left]
                out.write(part)
                left, start = left - len(part), 0
            out.write(b"\0" * padding)


if __name__ == "__main__":
    main()
