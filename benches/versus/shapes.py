"""Writes a Hugging Face directory with the shape of a known model and random weights in bf16.

usage: shapes.py SHAPE TOKENIZER_DIR OUT      SHAPE: one of those below. TOKENIZER_DIR: any HF directory; its tokenizer files are copied.
"""

import array
import json
import random
import shutil
import struct
import sys
from pathlib import Path

QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "vocab_size": 151936}
SHAPES = {
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 1e5, "vocab_size": 49152,
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "smollm2-360m": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 1e5, "vocab_size": 49152,
        "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
        "num_key_value_heads": 5,
    },
    "qwen2.5-0.5b": QWEN | {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "qwen2.5-1.5b": QWEN | {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}
SHARED = {"hidden_act": "silu", "max_position_embeddings": 8192, "tie_word_embeddings": True, "torch_dtype": "bfloat16"}
DRAWN = 1 << 20  # random numbers; every tensor is a slice of them from another offset


def tensors(config):
    """Yields the name and shape of every tensor."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = hidden // config["num_attention_heads"]
    keys = config["num_key_value_heads"] * head
    bias = config["model_type"] == "qwen2"
    yield "model.embed_tokens.weight", [config["vocab_size"], hidden]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        yield name + "input_layernorm.weight", [hidden]
        for projection, width in [("q", hidden), ("k", keys), ("v", keys)]:
            yield f"{name}self_attn.{projection}_proj.weight", [width, hidden]
            if bias:
                yield f"{name}self_attn.{projection}_proj.bias", [width]
        yield name + "self_attn.o_proj.weight", [hidden, hidden]
        yield name + "post_attention_layernorm.weight", [hidden]
        yield name + "mlp.gate_proj.weight", [inner, hidden]
        yield name + "mlp.up_proj.weight", [inner, hidden]
        yield name + "mlp.down_proj.weight", [hidden, inner]
    yield "model.norm.weight", [hidden]


def bf16(value):
    """The upper 16 bits of the f32."""
    return struct.unpack("<H", struct.pack("<f", value)[2:])[0]


def write_weights(path, config):
    """Writes all tensors: norms are 1, the others normal with a standard deviation of 0.02."""
    header, end = {}, 0
    for name, shape in tensors(config):
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    draw = random.Random(0)
    drawn = array.array("H", (bf16(draw.gauss(0.0, 0.02)) for _ in range(DRAWN)))
    one = array.array("H", [bf16(1.0)])
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, of in header.items():
            left = (of["data_offsets"][1] - of["data_offsets"][0]) // 2
            if name.endswith("norm.weight"):
                (one * left).tofile(file)
                continue
            at = draw.randrange(DRAWN)
            while left:
                part = drawn[at : at + left]
                part.tofile(file)
                left, at = left - len(part), 0


def main():
    if len(sys.argv) != 4 or sys.argv[1] not in SHAPES:
        raise SystemExit(f"{__doc__}\nshapes: {', '.join(SHAPES)}")
    config, source, out = SHAPES[sys.argv[1]] | SHARED, Path(sys.argv[2]), Path(sys.argv[3])
    out.mkdir(parents=True)
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(source / file, out / file)
    special = json.loads((source / "config.json").read_text())
    special = {key: special[key] for key in ("bos_token_id", "eos_token_id") if key in special}
    (out / "config.json").write_text(json.dumps(config | special, indent=1))
    write_weights(out / "model.safetensors", config)


if __name__ == "__main__":
    main()
