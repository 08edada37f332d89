"""Writes `tokens/`: tokenizers of the kinds that models have, and the ids that `transformers` gives with them.

usage: python tokens.py    (transformers 5.24, tokenizers; no torch)

KIND.json       a tokenizer.json: `metaspace` and `prepend` put a space in front of a text as SentencePiece does (newer and older
                conversions), `bytes` is byte-level and puts a token in front of a text and one behind it
expected.json   for each kind and each tokenizer_config.json: pairs of texts with the ids of the whole, cut where the first text alone
                and the whole begin to differ, without what is added behind; and rendered chats, whose ids have nothing added
"""

import json
import shutil
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

OUT = Path(__file__).parent / "tokens"

WORDS = "Question Answer Which city is the capital of Norway Oslo Bergen user assistant INST yes no and so on to be or not".split()
PAIRS = [
    ("Question: Which city is the capital of Norway?\nAnswer:", " Oslo\n"),
    ("The capital is", " Oslo."),
    ("The capital is ", "Oslo."),  # a token reaches across the cut
    ("so", "on"),
    ("no\n", "\nand so on"),
    ("[INST] yes [/INST]", "no</s>"),
    ("<s>yes", " no"),  # begins with the token that is put in front
    ("", "yes and no"),
    ("née à Tromsø:", " København 東京"),
]
RENDERED = ["<s>[INST] yes [/INST]no</s>", "<s>[INST] yes [/INST] no</s>[INST] and [/INST]so</s>", "user\nyes</s>\nassistant\nno</s>\n"]


def sentencepiece(kind):
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    letters = [chr(c) for c in range(33, 127)] + ["\n", "▁"]
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    tok.train_from_iterator(["▁" + w for w in WORDS] * 4 + letters,
                            trainers.BpeTrainer(vocab_size=560, special_tokens=special, show_progress=False))
    if kind == "prepend":
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tok


def byte_level():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tok.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    tok.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return tok


def cut(tok, front, prompt, completion):
    """The ids of the whole text, and how many of them the prompt alone begins with."""
    alone, whole = (tok(text)["input_ids"] for text in (prompt, prompt + completion))
    behind = tok("a")["input_ids"][-1] == tok.eos_token_id
    alone, whole = (ids[: len(ids) - behind] for ids in (alone, whole))
    if front:  # once
        alone, whole = (ids[1:] if ids[:2] == [1, 1] else ids for ids in (alone, whole))
    shared = 0
    while shared < len(alone) and shared < len(whole) and alone[shared] == whole[shared]:
        shared += 1
    return {"prompt": prompt, "completion": completion, "prompt_ids": whole[:shared], "completion_ids": whole[shared:]}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    expected = []
    for kind, tok in (("metaspace", sentencepiece("metaspace")), ("prepend", sentencepiece("prepend")), ("bytes", byte_level())):
        path = OUT / f"{kind}.json"
        tok.save(str(path), pretty=False)
        content = json.loads(path.read_text())
        content["added_tokens"] = [t for t in content["added_tokens"] if not t["content"].startswith("<0x")]
        path.write_text(json.dumps(content, ensure_ascii=False) + "\n")
        for flags in ({}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}, {"add_eos_token": True}):
            config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                      "clean_up_tokenization_spaces": False} | flags
            with tempfile.TemporaryDirectory() as directory:
                shutil.copy(path, Path(directory) / "tokenizer.json")
                (Path(directory) / "tokenizer_config.json").write_text(json.dumps(config))
                theirs = AutoTokenizer.from_pretrained(directory)
            front = theirs("a")["input_ids"][0] == 1
            expected.append({
                "kind": kind, "config": config, "pairs": [cut(theirs, front, *pair) for pair in PAIRS],
                "rendered": [{"text": text, "ids": theirs(text, add_special_tokens=False)["input_ids"]} for text in RENDERED],
            })
    (OUT / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")


main()
