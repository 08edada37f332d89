"""Writes tokenizers of SentencePiece into GGUF headers, and the ids that the package `sentencepiece` gives.

usage: python sentencepiece.py    (sentencepiece 0.2, gguf 0.19)

gguf/sentencepiece.gguf           as Llama 2's: a space is put in front of a text
gguf/sentencepiece-bare.gguf      as Gemma's: none is
gguf/sentencepiece.json           the ids of TEXTS with each, behind <s>
"""

import json
import sys
import tempfile
from pathlib import Path

# This file has the same name as the package.
sys.path.pop(0)

import sentencepiece as spm
from gguf import GGUFWriter, TokenType

OUT = Path(__file__).parent / "gguf"
CORPUS = [
    "Which city is the capital of Norway? Oslo is the capital of Norway.",
    "The river runs through the city and into the sea; there are 3 bridges and 12 towers.",
    "In 1999 the tower was built again, and again in 2024: higher, wider, and in another place.",
    "def capital(city):\n    return {\"Norway\": \"Oslo\"}[city]\n",
    "Ångström, Straße, naïve café, Привет мир, 你好 世界, こんにちは",
] * 20
TEXTS = [
    "Which country is Oslo located in?",
    "a",
    "  two  spaces and a tab\t.",
    "In 12345 years: the capitals of 67 cities.\n\nNew line",
    "naïve Ångström Привет 你好 こんにちは 🙂 שלום",
    "def f(x):\n        return x  # eight spaces",
    "thethethe aaaa ....",
]


def write(name, prefix):
    with tempfile.TemporaryDirectory() as directory:
        corpus = Path(directory) / "corpus.txt"
        corpus.write_text("\n".join(CORPUS))
        spm.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=f"{directory}/m", model_type="bpe", vocab_size=560, byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix,
            split_digits=True, character_coverage=0.98, allow_whitespace_only_pieces=True, minloglevel=2)
        model = spm.SentencePieceProcessor(model_file=f"{directory}/m.model")
    writer = GGUFWriter(str(OUT / f"{name}.gguf"), "llama")
    pieces = range(model.vocab_size())
    kind = lambda i: (TokenType.UNKNOWN if model.is_unknown(i) else TokenType.CONTROL if model.is_control(i)
                      else TokenType.BYTE if model.is_byte(i) else TokenType.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(i) for i in pieces])
    writer.add_token_scores([model.get_score(i) for i in pieces])
    writer.add_token_types([kind(i) for i in pieces])
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    writer.add_unk_token_id(model.unk_id())
    if not prefix:
        writer.add_add_space_prefix(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return [{"text": text, "ids": [model.bos_id()] + model.encode(text)} for text in TEXTS]


def main():
    expected = {name: write(name, prefix) for name, prefix in (("sentencepiece", True), ("sentencepiece-bare", False))}
    (OUT / "sentencepiece.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")


main()
