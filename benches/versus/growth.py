"""How time and memory of the program grow with its work; a JSON line a point.

usage: growth.py CURVE...     CURVE: read, synth, audit, tokens, sizes, threads
       [--model smollm2-135m] [--tokenizer HF_DIR] [--most N] [--threads 2]

  read     rows of a table, read, checked and tokenised: 10^2 to 10^6
  synth    made-up facts, written: 10^2 to 10^6
  audit    facts, asked under one prompt: 10^2 to 10^4
  tokens   tokens of a row, a row a step of SFT: 128 to 8,192, with activations kept and computed again
  sizes    weights, a step of SFT on 32 short rows: the shapes of `shapes.py`, random (`--tokenizer` names an HF directory)
  threads  threads, the same step: 1, 2, 4, ... as many as there are

UNFORGET names the program (default: unforget). `a_unit` is seconds for a row, a fact, a token or 10^6 weights, what a run of
nothing takes (loading the model) left out; where a curve grows as its work does it stays the same.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measured import measured, settings
from shapes import SHAPES

PROGRAM = os.environ.get("UNFORGET", "unforget")
HEADER = "subject\trelation\tobject\n"
COUNTRIES = ["Italy", "Japan", "Peru", "Kenya"]


def told(curve, n, seconds, units, peak, **more):
    """Prints a point."""
    print(json.dumps({"curve": curve, "n": n, "seconds": round(seconds, 4), "a_unit": seconds / units,
                      "peak_rss_bytes": peak, **more}), flush=True)


def tens(most):
    """10^2, 10^3, ... up to `most`."""
    return [10**power for power in range(2, 7) if 10**power <= most]


def table(path, rows):
    """A table of so many made-up facts."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(HEADER)
        file.writelines(f"Place {i:07d}\tP17\t{COUNTRIES[i % len(COUNTRIES)]}\n" for i in range(rows))
    return path


def growing(curve, counts, command):
    """Points of a command that is given a number of things."""
    nothing = min(measured(command(1))[0] for _ in range(3))
    for n in counts:
        seconds, peak, _ = measured(command(n))
        told(curve, n, max(seconds - nothing, 1e-9), n, peak, with_loading=round(seconds, 2))


def read(args, folder):
    growing("read", tens(args.most), lambda n: [PROGRAM, "data", table(folder / "facts.tsv", n), "--model", args.model])


def synth(args, folder):
    growing("synth", tens(args.most), lambda n: [
        PROGRAM, "synth", args.model, "--relation", "P17", "--facts", "pack:world", "--n", n])


def audit(args, folder):
    growing("audit", tens(min(args.most, 10**4)), lambda n: [
        PROGRAM, "audit", args.model, table(folder / "facts.tsv", n), "--runs", "1", "--force", "--out", folder / "audit",
        "--seed", time.time_ns() % 2**31])  # an audit that was made before would be taken from the cache


def step(model, learn, folder, *sets, threads):
    """Median seconds of a step of SFT after the first, its tokens, and the run's peak memory."""
    plain = settings(data__audit="false", measure__paraphrase="false", train__epochs=1, train__lr=1e-12)
    out = folder / "run"
    _, peak, _ = measured([PROGRAM, "tune", model, "--learn", learn, "--method", "sft", "--force", "--out", out,
                           "--threads", threads, *plain, *sets])
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in steps if row["type"] == "step"][1:]
    return statistics.median(row["seconds"] for row in steps), statistics.median(row["tokens"] for row in steps), peak


def tokens(args, folder):
    texts = folder / "texts.jsonl"
    for recompute in ("false", "true"):
        n = 128
        while n <= min(args.most, 8192):
            text = " ".join(f"{i % 10}" for i in range(n))  # a digit and what separates it: about two tokens
            texts.write_text("".join(json.dumps({"text": f"{row} {text}"}) + "\n" for row in range(4)))
            sets = settings(train__batch_size=1, train__max_tokens=n, train__truncate="true", train__recompute=recompute)
            seconds, of_step, peak = step(args.model, texts, folder, *sets, threads=args.threads)
            told("tokens", of_step, seconds, of_step, peak, recompute=recompute == "true")
            n *= 2


def sizes(args, folder):
    learn = table(folder / "facts.tsv", 160)
    for shape in SHAPES:
        made = folder / shape
        measured([sys.executable, Path(__file__).parent / "shapes.py", shape, args.tokenizer, made])
        weights = (made / "model.safetensors").stat().st_size / 2
        sets = settings(train__batch_size=32, train__clip=0, train__fused="true")
        seconds, _, peak = step(made, learn, folder, *sets, threads=args.threads)
        told("sizes", round(weights / 1e6), seconds, weights / 1e6, peak, shape=shape)
        (made / "model.safetensors").unlink()


def threads(args, folder):
    learn = table(folder / "facts.tsv", 320)
    n = 1
    while n <= (os.cpu_count() or 1):
        seconds, _, peak = step(args.model, learn, folder, *settings(train__batch_size=32), threads=n)
        told("threads", n, seconds, 1 / n, peak)
        n *= 2


CURVES = {curve.__name__: curve for curve in (read, synth, audit, tokens, sizes, threads)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", nargs="+", choices=list(CURVES), metavar="CURVE")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokenizer", metavar="HF_DIR", help="for the shapes' tokenizer")
    parser.add_argument("--most", type=int, default=10**6)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if "sizes" in args.curves and not args.tokenizer:
        parser.error("sizes: --tokenizer names an HF directory")
    for curve in args.curves:
        with tempfile.TemporaryDirectory() as folder:
            CURVES[curve](args, Path(folder))


if __name__ == "__main__":
    main()
