"""Writes `gguf/`: small GGUF files, and their content as read by the `gguf` package and `transformers`.

usage: python gguf.py    (gguf 0.19, transformers 5.23, tokenizers, safetensors, numpy; after gen.py)

quants.gguf          a llama with a tensor of every supported quantisation, of random blocks
quants.safetensors   the same weights, dequantised by the package, under their Hugging Face names
FAMILY.gguf          the golden model of that family, in f32
pre-NAME.gguf        a header alone: one tokenizer under each pre-tokenizer's name
tokens.json          for each of those names, the token ids of TEXTS
"""

import json
import sys
from pathlib import Path

# This file has the same name as the package.
sys.path.pop(0)

import numpy as np
from gguf import GGMLQuantizationType as Q, GGUFWriter, TokenType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2

HERE = Path(__file__).parent
OUT = HERE / "gguf"
RNG = np.random.default_rng(0)

TEXTS = [
    "Q: Which country is Bergamo located in?\nA: Italy\n",
    "",
    " leading, trailing \n\n\n\t tabs\r\nand   runs  of spaces   ",
    "In 1999 there were 12,345.67 of them; 3rd, x2y, 0x7f, １２３ ٣٤٥ ½ ²",
    "naïve café Ångström Straße İstanbul — “quotes” … € £ 你好，世界 こんにちは Привет שלום नमस्ते",
    "emoji 🙂🏳️‍🌈👩‍👩‍👧‍👦 and combining e\u0301 a\u0308, zero\u200bwidth, nbsp\u00a0here",
    "fn main() {\n    let x = vec![1, 2, 3];\n\tprintln!(\"{:?}\", x); // don't\n}\n",
    "I'll we've they're it's you'd I'm CAN'T 'S",
    "<|start|>user\nHello<|end|>\n<|start|>assistant\n",
]
SPECIAL = ["<|end|>", "<|start|>"]


def blocks(kind, rows, columns):
    """Random blocks of `kind` with finite scales: as stored, (rows, bytes), and in f32, (rows, columns)."""
    if kind in (Q.F32, Q.F16):
        stored = RNG.normal(size=(rows, columns)).astype({Q.F32: np.float32, Q.F16: np.float16}[kind])
        return stored, stored.astype(np.float32)
    if kind == Q.BF16:
        stored = (RNG.normal(size=(rows, columns)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return stored.view(np.uint8), (stored.astype(np.uint32) << 16).view(np.float32)
    size, length = GGML_QUANT_SIZES[kind]
    raw = RNG.integers(0, 256, size=(rows * columns // size, length), dtype=np.uint8)
    # Offsets of the f16 scales in a block.
    scales = {Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q5_1: [0, 2], Q.Q8_0: [0], Q.Q2_K: [80, 82], Q.Q3_K: [108],
              Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208], Q.Q8_K: []}[kind]
    for at in scales:
        raw[:, at:at + 2] = RNG.normal(scale=0.1, size=(len(raw), 1)).astype(np.float16).view(np.uint8)
    if kind == Q.Q8_K:  # f32 scale, 256 int8, sums for matmuls; the package cannot read it
        raw[:, :4] = RNG.normal(scale=0.1, size=(len(raw), 1)).astype(np.float32).view(np.uint8)
        values = raw[:, :4].copy().view(np.float32) * raw[:, 4:260].copy().view(np.int8).astype(np.float32)
    else:
        values = dequantize(raw, kind)
    return raw.reshape(rows, -1), values.reshape(rows, columns).astype(np.float32)


def paired(rows, heads):
    """Rows of q or k in Hugging Face's order -> in that of a llama GGUF (interleaved rope)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def unpaired(rows, heads):
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def metadata(writer, c):
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_key_length(c["head_dim"])
    writer.add_value_length(c["head_dim"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])


def tokenizer_metadata(writer, tokenizer, pre, special):
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([TokenType.CONTROL if t in special else TokenType.NORMAL for t, _ in vocabulary])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(vocabulary.index((special[-1], tokenizer.token_to_id(special[-1]))))
    writer.add_eos_token_id(tokenizer.token_to_id(special[0]))


def write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


PARTS = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "self_attn.o_proj": "attn_output",
         "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{PARTS[part]}.{kind}"


def byte_level_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3 + ["the country of the city in the world 10 100 1000 19 1999\n\n  \n"] * 3, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def quants():
    config = dict(max_position_embeddings=64, hidden_size=256, num_hidden_layers=2, intermediate_size=32, num_attention_heads=2,
                  num_key_value_heads=1, head_dim=16, rope_theta=10000.0, rms_norm_eps=1e-5)
    tokenizer = Tokenizer(models.BPE(vocab={"<|end|>": 0, "<|start|>": 1, "a": 2, "b": 3, "ab": 4}, merges=[("a", "b")]))
    kinds = {"model.embed_tokens": Q.Q6_K} | {f"model.layers.{layer}.{part}": kind for layer, kinds in enumerate([
        dict(zip(["q", "k", "v", "o", "gate", "up", "down"], [Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q8_0, Q.Q5_K, Q.Q8_K, Q.Q4_0])),
        dict(zip(["q", "k", "v", "o", "gate", "up", "down"], [Q.F16, Q.BF16, Q.F32, Q.Q5_1, Q.Q4_1, Q.Q5_0, Q.Q8_0])),
    ]) for part, kind in ((f"{'self_attn' if p in 'qkvo' else 'mlp'}.{p}_proj", k) for p, k in kinds.items())}
    rows = {"embed_tokens": (5, 256), "q_proj": (32, 256), "k_proj": (16, 256), "v_proj": (16, 256), "o_proj": (256, 32),
            "gate_proj": (32, 256), "up_proj": (32, 256), "down_proj": (256, 32)}
    writer = GGUFWriter(OUT / "quants.gguf", "llama")
    metadata(writer, config)
    tokenizer_metadata(writer, tokenizer, "smollm", SPECIAL)
    expected = {}
    for name, kind in kinds.items():
        stored, values = blocks(kind, *rows[name.rsplit(".", 1)[1]])
        heads = {"q_proj": 2, "k_proj": 1}.get(name.rsplit(".", 1)[1])
        expected[f"{name}.weight"] = unpaired(values, heads) if heads else values
        writer.add_tensor(gguf_name(f"{name}.weight"), stored, raw_dtype=kind)
    norms = ["model.norm"] + [f"model.layers.{layer}.{norm}" for layer in range(2) for norm in ("input_layernorm", "post_attention_layernorm")]
    for name in norms:
        expected[f"{name}.weight"] = RNG.normal(size=256).astype(np.float32)
        writer.add_tensor(gguf_name(f"{name}.weight"), expected[f"{name}.weight"])
    write(writer)
    save_file({name: np.ascontiguousarray(values) for name, values in expected.items()}, OUT / "quants.safetensors")


def family(name):
    config = json.loads((HERE / name / "config.json").read_text())
    config["rope_theta"] = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    tokenizer = Tokenizer.from_file(str(HERE / name / "tokenizer.json"))
    special = [t["content"] for t in json.loads((HERE / name / "tokenizer.json").read_text())["added_tokens"]]
    writer = GGUFWriter(OUT / f"{name}.gguf", name)
    metadata(writer, config)
    tokenizer_metadata(writer, tokenizer, "gpt-2", special)
    for key, values in load_file(HERE / name / "model.safetensors").items():
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(key.split(".")[-2])
        if name == "llama" and heads:
            values = paired(values, heads)
        writer.add_tensor(gguf_name(key), np.ascontiguousarray(values))
    write(writer)


def pre_tokenizer_files():
    split = lambda pattern: pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe = byte_level_bpe()
    tokens = {}
    for pre, pre_tokenizer, normalizer in [
        ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False), None),
        ("smollm", pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]), None),
        ("qwen2", split(QWEN2), normalizers.NFC()),
        ("llama-bpe", split(QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), None),
    ]:
        tokenizer = Tokenizer.from_str(bpe.to_str())
        tokenizer.pre_tokenizer = pre_tokenizer
        if normalizer:
            tokenizer.normalizer = normalizer
        writer = GGUFWriter(OUT / f"pre-{pre}.gguf", "llama")
        tokenizer_metadata(writer, tokenizer, pre, SPECIAL)
        write(writer)
        tokens[pre] = [{"text": text, "ids": tokenizer.encode(text).ids} for text in TEXTS]
    (OUT / "tokens.json").write_text(json.dumps(tokens, ensure_ascii=False, indent=1) + "\n")


OUT.mkdir(exist_ok=True)
quants()
for name in ("llama", "qwen2", "qwen3"):
    family(name)
pre_tokenizer_files()
