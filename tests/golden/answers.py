"""Normal forms of answers by Python, as a reference for `src/facts/normalise.rs`.

    python answers.py       # into answers.json

The rule, written here a second time: the first line; NFKC; case folded; white space collapsed; then, as long as something changes,
sentence punctuation at the end, and one pair of quotes or brackets around all of it, are removed; then one leading "the", and what
surrounds the rest. A text of which nothing would be left is kept as it is.
"""

import itertools
import json
import re
import unicodedata
from pathlib import Path

OUT = Path(__file__).parent / "answers.json"
QUOTES = set("\"'`‘’‚‛“”„‟«»‹›「」『』〝〞")
BRACKETS = dict(["()", "[]", "{}", "〈〉", "《》", "【】"])


def unwrapped(text: str) -> str:
    if len(text) < 2:
        return text
    first, inner, last = text[0], text[1:-1], text[-1]
    if first in QUOTES and last in QUOTES:
        # Apostrophes within words are no quotes.
        rest = re.sub(r"(?<=[^\W_])['’](?=[^\W_])", "", inner)
        return text if first in rest or last in rest else inner
    if BRACKETS.get(first) == last:
        depth = 0
        for c in inner:
            depth += (c == first) - (c == last)
            if depth < 0:
                return text
        return inner if depth == 0 else text
    return text


def bare(text: str) -> str:
    text = text.strip()
    while True:
        shorter = unwrapped(text.rstrip(".,;:!?").rstrip()).strip()
        if not shorter or shorter == text:
            return text
        text = shorter


def normalise(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.split("\n")[0])
    text = unicodedata.normalize("NFKC", re.sub(r"\s+", " ", text.casefold()))
    text = bare(text)
    if text.startswith("the "):
        text = bare(text[4:])
    return text


CORES = ["C", "C++", "C#", "A+", "-5", "5", "50%", "#1", ".NET", "$5", "U.S.", "Yahoo!", "!!!", "The Who", "the", "don't", "Rock 'n' Roll",
         "Paris (France)", "(a) or (b)", "Ｇａｍｂｉａ", "Straße", "ΣΑΣ", "İstanbul", "Côte  d'Ivoire", "a\tb", "5'", "f(x)", "[sic]", "", "ﬁn", "Ⅷ", "x²"]
AROUND = [("", ""), (" ", "\n"), ("\"", "\""), ("“", "”"), ("(", ")"), ("[", "]."), ("'", "'!"), ("the ", ""), ("The \"", "\"."), ("", "..."), ("«", "» ."),
          ("\"", ""), ("(", ""), ("", ")"), ("`", "`"), ("**", "**"), ("-", ""), ("", "%"), ("the the ", ""), ("(", "]")]


def main() -> None:
    texts = [before + core + after for core, (before, after) in itertools.product(CORES, AROUND)]
    # Single characters: case folding of all of them, in the form without compositions in which it is done.
    folds = {}
    for code in itertools.chain(range(0xD800), range(0xE000, 0x110000)):
        c = chr(code)
        if unicodedata.category(c) != "Cn" and unicodedata.normalize("NFKD", c) == c and c.casefold() != c:
            folds[c] = c.casefold()
    out = {"answers": [[text, normalise(text)] for text in texts], "folds": folds}
    OUT.write_text(json.dumps(out, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
