"""Draws a Markdown table from the JSON of `main.rs` and, where there is one, of `torch_gpu.py`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def rows_of(own: dict[str, Any], torch: dict[str, Any] | None, peak: float | None) -> list[str]:
    settings = torch["settings"] if torch else []
    names = [("TF32" if s["tf32"] else "f32") + (", compiled" if s["compiled"] else "") for s in settings]
    lines = [f"{own['device']} ({own['backend']}, {own['driver']})", ""]
    header = ["product", "GFLOP/s", *(["share of peak"] if peak else []), *(f"PyTorch {name}" for name in names)]
    lines += table_head(header)
    for i, product in enumerate(own["products"]):
        cells = [f"{product['form']} {' x '.join(map(str, product['shape']))}", f"{product['gflops']:,.0f}"]
        if peak:
            cells.append(f"{product['gflops'] / (peak * 1e3):.0%}")
        cells += [f"{setting['products'][i]['gflops']:,.0f}" for setting in settings]
        lines.append(line(cells))
    lines += ["", *table_head(["model", "step", "ms", "dispatches", *(f"PyTorch {name}, ms" for name in names)])]
    for m, model in enumerate(own["models"]):
        for s, step in enumerate(model["steps"]):
            kind = "self-distillation" if step["distills"] else "SFT"
            cells = [
                model["model"],
                f"{kind}, {step['rows']} rows of {step['tokens']}",
                f"{1e3 * step['seconds']:.1f}",
                str(step["dispatches"]),
                *(f"{1e3 * setting['models'][m]['steps'][s]['seconds']:.1f}" for setting in settings),
            ]
            lines.append(line(cells))
    lines += ["", *table_head(["model", "rows decoded together", "tokens/s"])]
    for model in own["models"]:
        lines += [line([model["model"], str(d["rows"]), f"{d['tokens_per_second']:,.0f}"]) for d in model["decoding"]]
    return lines


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table_head(names: list[str]) -> list[str]:
    return [line(names), "|" + "---|" * len(names)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("own", type=Path)
    parser.add_argument("torch", type=Path, nargs="?")
    parser.add_argument("--peak", type=float, help="the card's f32 peak, in TFLOP/s")
    args = parser.parse_args()
    torch = json.loads(args.torch.read_text()) if args.torch else None
    print("\n".join(rows_of(json.loads(args.own.read_text()), torch, args.peak)))


if __name__ == "__main__":
    main()
