"""Writes `unforget/_config.py`: the config's keys as typed keyword arguments, from the tables of `book/src/config.md`.

python python/generate_config.py
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "book" / "src" / "config.md"
MODULE = ROOT / "python" / "unforget" / "_config.py"

# Keys that `tune` takes as arguments of their own.
OWN = {"model", "out", "seed", "device", "baseline", "data.learn", "data.keep", "data.held", "method.kind"}

# The types that the default does not show.
TYPES = {
    "model_dtype": 'Literal["f32", "stored", "q8_0", "q4_0"]',
    "data.validation": "Sequence[str]",
    "data.validation_share": "float",
    "data.audit": "AuditConfig | Literal[False]",
    "data.match": 'Literal["exact", "contains"]',
    "data.prompt": "str",
    "data.target": "str",
    "method.goal": 'Literal["facts", "task"]',
    "method.vocab_subset": 'Literal["full"] | Mapping[str, int]',
    "method.teacher": 'Literal["auto", "online", "base", "hidden", "topk"]',
    "method.reduction": 'Literal["example", "token"]',
    "method.budget": "float",
    "method.ewc.previous_runs": "Sequence[str]",
    "method.ewc.gamma": "float",
    "method.replay.target": 'Literal["label", "teacher"]',
    "method.replay.schedule": 'Literal["uniform", "ramp"]',
    "method.replay.selection": 'Literal["hardest", "random"]',
    "method.decoys.pool_ratio": "float",
    "method.decoys.subjects": 'Literal["recombined", "sampled"]',
    "train.trainable": "str | Sequence[str]",
    "train.lr_scheduler": 'Literal["constant", "cosine", "linear"]',
    "train.warmup_ratio": "float",
    "train.betas": "tuple[float, float]",
    "train.save_every": "int",
    "train.ema_decay": "float",
    "train.on_nonfinite": 'Literal["stop", "skip"]',
    "train.lora.target_modules": "str | Sequence[str]",
    "train.lora.rank_pattern": "Mapping[str, int]",
    "train.lora.alpha_pattern": "Mapping[str, int]",
    "train.lora.variant": 'Literal["lora", "rslora", "dora"]',
    "train.early_stopping.accuracy": "float",
    "train.early_stopping.patience": "int",
    "measure.behaviour": 'bool | Literal["every"]',
}

HEADER = '''"""The config's keys as typed keyword arguments. Written by `python/generate_config.py`; do not edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
'''


def tables() -> dict[str, list[tuple[str, str, str]]]:
    """The rows (key, default, text) of each table of the reference."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    section = ""
    for line in REFERENCE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:].strip("`").replace("Top level", "")
        cells = line.strip("|").split(" | ")
        if line.startswith("| `") and len(cells) == 3:  # noqa: PLR2004
            key, default, text = (cell.strip() for cell in cells)
            found.setdefault(section, []).append((key.strip("`"), default.strip("`"), text))
    return found


def type_name(path: str, default: str, sections: dict[str, list[tuple[str, str, str]]]) -> str:
    """The Python type of a key."""
    if path in TYPES:
        return TYPES[path]
    if path in sections:
        return class_name(path)
    for pattern, name in ((r"true|false", "bool"), (r"\d+", "int"), (r"[\d.e-]+", "float"), (r'".*"', "str")):
        if re.fullmatch(pattern, default):
            return name
    raise ValueError(f"{path}: the type of {default} is not known: add it to TYPES")


def class_name(section: str) -> str:
    """`early_stopping` as `EarlyStoppingConfig`."""
    return "".join(part.capitalize() for part in section.rpartition(".")[2].split("_")) + "Config"


def typed_dict(name: str, doc: str, keys: list[tuple[str, str, str]]) -> str:
    """A class with (key, type, text) as its fields."""
    lines = [f"class {name}(TypedDict, total=False):", f'    """{doc}"""', ""]
    for key, type_, text in keys:
        lines.append(f"    {key}: {type_}")
        plain = text.replace("`", "").replace("\\", "\\\\")
        doc_lines = textwrap.wrap(plain[:1].upper() + plain[1:].rstrip(".") + ".", 110)
        closing = '"""' if len(doc_lines) == 1 else '\n    """'
        lines.append('    """' + "\n    ".join(doc_lines) + closing)
    return "\n".join(lines) + "\n"


def module() -> str:
    """The text of the module."""
    sections = tables()
    nested = [name for name in sections if "." in name]
    parts = [HEADER]
    for section in nested:
        keys = [
            (key, type_name(f"{section}.{key}", default, sections), text) for key, default, text in sections[section]
        ]
        parts.append(typed_dict(class_name(section), f"`{section}`.", keys))
    flat, paths = [], {}
    for section in ("", "data", "method", "train", "measure"):
        for key, default, text in sections[section]:
            path = f"{section}.{key}" if section else key
            if path in OWN or (not section and path in sections):
                continue
            name = "lambda_" if key == "lambda" else key
            if path in sections and text in ("", "a table, see below"):
                text = f"`{path}`"  # noqa: PLW2901
            flat.append((name, type_name(path, default, sections), text))
            if name in paths:
                raise ValueError(f"two keys are called {name}")
            paths[name] = path
    doc = "The keys of `[data]`, `[method]`, `[train]` and `[measure]`, and `model_dtype`."
    parts.append(typed_dict("ConfigKeys", doc, flat))
    mapping = "".join(f'    "{name}": "{path}",\n' for name, path in paths.items())
    parts.append(f"KEYS = {{\n{mapping}}}\n")
    return "\n\n".join(parts)


if __name__ == "__main__":
    MODULE.write_text(module(), encoding="utf-8")
