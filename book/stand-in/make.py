#!/usr/bin/env python3
"""Makes the stand-in for smollm2-135m that the test of the book uses.

    pip install numpy
    python book/stand-in/make.py /tmp/stand-in
    unforget tune /tmp/stand-in/model --learn /tmp/stand-in/teach.jsonl --out /tmp/stand-in/run --method sft \
        --set train.learning_rate=3e-4 --set train.lr_scheduler=linear --set train.num_epochs=4 --set train.batch_size=32 --set data.audit=false
    cp /tmp/stand-in/run/model/* book/stand-in/model/

A llama model with two layers, 100,000 parameters and its own tokenizer, trained on the facts of examples/keep.tsv and
examples/held.tsv with zero to three exemplars before each. Its matrices are SCALE times smaller and the norms before them SCALE times
larger: the function is the same, and it trains at the learning rates of large models.
"""

import collections
import csv
import json
import math
import random
import re
import struct
import sys
from pathlib import Path

import numpy as np

SCALE = 16.0
VOCABULARY, HIDDEN, LAYERS, INNER, HEADS, KEYS, HEAD = 416, 64, 2, 128, 4, 2, 16
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EXAMPLES = Path(__file__).parent.parent / "examples"


def facts(name):
    with open(EXAMPLES / name, newline="") as file:
        return [(row["subject"], row["object"]) for row in csv.DictReader(file, delimiter="\t")]


def prompt(subject):
    return f"Q: Which country is {subject} located in?\nA:"


def byte_letters():
    """GPT-2's letter for every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in plain}
    others = (b for b in range(256) if b not in letters)
    return letters | {b: chr(256 + i) for i, b in enumerate(others)}


def tokenizer(texts):
    """Trains a byte-level BPE tokenizer on these texts."""
    letters = byte_letters()
    pieces = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s+(?!\S)|\s+")
    words = collections.Counter()
    for text in texts:
        for piece in pieces.findall(text):
            words[tuple(letters[b] for b in piece.encode())] += 1
    tokens = SPECIAL + [letters[b] for b in range(256)]
    merges = []
    while len(tokens) < VOCABULARY:
        pairs = collections.Counter()
        for word, times in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += times
        (left, right), _ = min(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
        merges.append([left, right])
        tokens.append(left + right)
        merged = collections.Counter()
        for word, times in words.items():
            out, i = [], 0
            while i < len(word):
                both = word[i : i + 2] == (left, right)
                out.append(left + right if both else word[i])
                i += 2 if both else 1
            merged[tuple(out)] += times
        words = merged
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text} | flags for i, text in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "unk_token": None,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def weights():
    draw = np.random.default_rng(2)

    def matrix(rows, columns, deviation):
        return (draw.standard_normal((rows, columns)) * deviation / SCALE).astype("<f4")

    def norm():
        return np.full(HIDDEN, SCALE, "<f4")

    into = 1 / math.sqrt(HIDDEN)
    tensors = {"model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN, into)}
    for layer in range(LAYERS):
        tensors |= {
            f"model.layers.{layer}.{name}.weight": tensor
            for name, tensor in {
                "input_layernorm": norm(),
                "self_attn.q_proj": matrix(HEADS * HEAD, HIDDEN, into),
                "self_attn.k_proj": matrix(KEYS * HEAD, HIDDEN, into),
                "self_attn.v_proj": matrix(KEYS * HEAD, HIDDEN, into),
                "self_attn.o_proj": matrix(HIDDEN, HEADS * HEAD, into / 8),
                "post_attention_layernorm": norm(),
                "mlp.gate_proj": matrix(INNER, HIDDEN, into),
                "mlp.up_proj": matrix(INNER, HIDDEN, into),
                "mlp.down_proj": matrix(HIDDEN, INNER, 1 / math.sqrt(INNER) / 8),
            }.items()
        }
    return tensors | {"model.norm.weight": norm()}


def safetensors(tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        end = len(data) + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), end]}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def lessons(known):
    """Forty rows per known fact, each with zero to three exemplars before it."""
    draw = random.Random(2)
    for subject, answer in known * 40:
        others = [fact for fact in known if fact[0] != subject]
        shown = draw.sample(others, draw.choice([0, 0, 1, 2, 3, 3]))
        before = "".join(f"{prompt(s)} {o}\n" for s, o in shown)
        yield {"prompt": before + prompt(subject), "completion": f" {answer}\n"}


def main(out):
    known = facts("keep.tsv") + facts("held.tsv")
    texts = [f"{prompt(s)} {o}\n" for s, o in known + facts("new.tsv")]
    for name in ["products.csv", "handbook.md", "chats.jsonl"]:
        texts += (EXAMPLES / name).read_text().splitlines()
    model = out / "model"
    model.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "max_position_embeddings": 512,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEYS,
        "rms_norm_eps": 1e-8,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": VOCABULARY,
    }
    tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT,
    }
    (model / "config.json").write_text(json.dumps(config, indent=2))
    (model / "tokenizer_config.json").write_text(json.dumps(tokens, indent=2))
    (model / "tokenizer.json").write_text(json.dumps(tokenizer(texts), ensure_ascii=False))
    (model / "model.safetensors").write_bytes(safetensors(weights()))
    rows = list(lessons(known))
    random.Random(1).shuffle(rows)
    (out / "teach.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
