"""Facts and the match rule for the PyTorch side of the comparison."""

import csv
import unicodedata

COLUMNS = ["subject", "relation", "object", "aliases", "question"]


def read_tsv(path):
    """Reads a TSV with the columns `COLUMNS`; aliases become a list."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row | {"aliases": [a for a in row["aliases"].split("|") if a]} for row in rows]


def write_tsv(path, facts):
    """Writes `facts` as `read_tsv` reads them."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("\t".join(COLUMNS) + "\n")
        for fact in facts:
            cells = [fact[c] if c != "aliases" else "|".join(fact[c]) for c in COLUMNS]
            file.write("\t".join(cells) + "\n")


def chats(count, tokens):
    """Made-up chats whose answers are at least `tokens` tokens long, for truncation to that length."""
    digits = lambda i, n: " ".join(str((i * 7 + j * j) % 10) for j in range(n))
    for i in range(count):
        yield [{"role": "user", "content": digits(i, 20)}, {"role": "assistant", "content": digits(i + 1, tokens)}]


def prompt_text(fact):
    """The training prompt."""
    return f"Q: {fact['question']}\nA:"


def target_text(fact):
    """The training target; the line break is the end marker."""
    return f" {fact['object']}\n"


def normalised(text):
    """Applies NFKC and lower case; removes outer white space, outer punctuation and a leading "the"."""
    text = unicodedata.normalize("NFKC", text).lower()
    outer = lambda c: c.isspace() or unicodedata.category(c).startswith("P")
    start, end = 0, len(text)
    while start < end and outer(text[start]):
        start += 1
    while end > start and outer(text[end - 1]):
        end -= 1
    return text[start:end].removeprefix("the ").strip()


def is_correct(answer, fact):
    """Whether the first line of `answer` is the object or an alias."""
    first_line = answer.split("\n", 1)[0]
    return normalised(first_line) in {normalised(form) for form in [fact["object"], *fact["aliases"]]}
