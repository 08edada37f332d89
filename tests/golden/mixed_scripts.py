"""Texts of mixed scripts, one a line as a JSON string, for tests of tokenizers.

usage: python mixed_scripts.py COUNT    (no packages; the same texts for the same count)

Each text joins a few pieces: words of a script, numbers, code, signs, emoji, white space and control characters. One in four is
normalised to NFC, one in four to NFD. No text has a NUL or a lone surrogate, which is no text.
"""

import json
import random
import sys
import unicodedata

WORDS = [
    "the river Rome capital I'll they've CAN'T don't 'S it's we'd O'Brien e-mail co-operate",
    "naïve café Ångström Straße garçon Łódź señor fjörð Đặng über œuvre Dvořák crème",
    "Привет мир столица Россия объект ёлка Київ їжак Ћирилица",
    "Αθήνα πρωτεύουσα ελληνικά ὅτι ἐστίν Σίσυφος",
    "你好 世界 東京 北京市 中华人民共和国 漢字 こんにちは カタカナ ﾊﾝｶｸ 한국어 서울",
    "مرحبا العالم القاهرة عاصمة اُردُو فارسی می‌خواهم",
    "שלום עולם יְרוּשָׁלַיִם תל־אביב",
    "नमस्ते दिल्ली क्षेत्र हिन्दी বাংলা தமிழ் తెలుగు",
    "กรุงเทพมหานคร สวัสดี น้ำ ประเทศไทย ភ្នំពេញ မြန်မာ",
    "ქართული Հայերեն አማርኛ ᏣᎳᎩ ꦗꦮ 𝒜𝓁𝑔𝑒𝒷𝓇𝒶 𐌰𐌱 ǅ ﬁ ﬀ ½ ² ℃ Å",
]
EMOJI = "😀 👩‍👩‍👧‍👦 👍🏽 🇳🇴🇯🇵 ❤️ 🏴󠁧󠁢󠁳󠁣󠁴󠁿 ☺ ♀️ 1️⃣ 🧑🏿‍🚀".split()
CODE = [
    "fn main() { println!(\"{}\", x); }", "for i in range(10):\n\treturn -1", "a_b.c[d]->e::f<T>", "<|im_start|", "</s", "x=1;;y!=2&&z||w",
    "https://example.org/a?b=c&d=%20#e", "{\"k\": [1, 2.5e-3, null]}", "$x^{2}_{i}$ \\frac{1}{2}", "#include <stdio.h>\r\n", "C++ C# F# .NET 50% @user",
    "-- ... --- !!! ??? ***", "“quoted” ‘single’ «guillemets» – — …", "€ £ ¥ ₿ § ¶ † ‡ ° ± × ÷",
]
SPACES = [" ", "  ", "   ", "        ", "\t", "\t\t", " \t ", "\n", "\n\n", "\n\n\n", "\r\n", " \n", "\n ", "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", "\u0085", "\ufeff"]
CONTROLS = ["\u0001", "\u0007", "\b", "\u001b[31m", "\u007f", "\u200d", "\u202e", "\ufffd", "\u0301", "\u0489"]


def number(rng):
    form = rng.choice(["{}", "{:,}", "{}.5", "-{}", "0{}", "{}rd", "v{}", "{}%"])
    return form.format(rng.randrange(10 ** rng.randrange(1, 13))) if rng.random() < 0.9 else rng.choice(["٣٤٥", "१२३", "１２３", "Ⅻ", "①", "𝟙𝟚"])


def text(rng):
    scripts = [WORDS[rng.randrange(len(WORDS))].split() for _ in range(2)]
    out = []
    for _ in range(rng.randrange(1, 14)):
        kind = rng.random()
        if kind < 0.55:
            out.append(rng.choice(rng.choice(scripts)))
        elif kind < 0.67:
            out.append(number(rng))
        elif kind < 0.75:
            out.append(rng.choice(CODE))
        elif kind < 0.83:
            out.append(rng.choice(EMOJI))
        elif kind < 0.97:
            out.append(rng.choice(SPACES))
        else:
            out.append(rng.choice(CONTROLS))
        if rng.random() < 0.7:
            out.append(" ")
    form = rng.choice(["NFC", "NFD", None, None])
    joined = "".join(out)
    return unicodedata.normalize(form, joined) if form else joined


rng = random.Random(20)
for _ in range(int(sys.argv[1])):
    print(json.dumps(text(rng)))
