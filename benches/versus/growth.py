"""Time and memory of `unforget` as a function of the amount of work; one JSON line per point.

usage: growth.py CURVE...     CURVE: read, synth, audit, tokens, sizes, threads
       [--model smollm2-135m] [--tokenizer HF_DIR] [--most N] [--threads 2]

  read     table rows read, checked and tokenised: 10^2 to 10^6
  synth    made-up facts written: 10^2 to 10^6
  audit    facts audited under one prompt: 10^2 to 10^4
  tokens   tokens per row, one row per SFT step: 128 to 8,192, with and without gradient checkpointing
  sizes    model size, SFT step on 32 short rows: the shapes of `shapes.py`, random weights (`--tokenizer` names an HF directory)
  threads  threads, the same step: 1, 2, 4, ... up to the number of cores

UNFORGET is the program (default: unforget). `seconds_per_unit` is the time for a row, a fact, a token or 10^6 weights, without
the time to load the model. It is constant where time grows linearly.
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


def report(curve, n, seconds, units, peak, **more):
    """Prints one point."""
    print(json.dumps({"curve": curve, "n": n, "seconds": round(seconds, 4), "seconds_per_unit": seconds / units,
                      "peak_rss_bytes": peak, **more}), flush=True)


def tens(most):
    """10^2, 10^3, ... up to `most`."""
    return [10**power for power in range(2, 7) if 10**power <= most]


def table(path, rows):
    """Writes a table of `rows` made-up facts to `path`."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(HEADER)
        file.writelines(f"Place {i:07d}\tP17\t{COUNTRIES[i % len(COUNTRIES)]}\n" for i in range(rows))
    return path


def measure_counts(curve, counts, command):
    """Measures `command(n)` for each n of `counts`, minus the time for one item."""
    overhead = min(measured(command(1))[0] for _ in range(3))
    for n in counts:
        seconds, peak, _ = measured(command(n))
        report(curve, n, max(seconds - overhead, 1e-9), n, peak, with_loading=round(seconds, 2))


def read(args, folder):
    measure_counts("read", tens(args.most), lambda n: [PROGRAM, "data", table(folder / "facts.tsv", n), "--model", args.model])


def synth(args, folder):
    measure_counts("synth", tens(args.most), lambda n: [
        PROGRAM, "synth", args.model, "--relation", "P17", "--facts", "pack:world", "--n", n])


def audit(args, folder):
    measure_counts("audit", tens(min(args.most, 10**4)), lambda n: [
        PROGRAM, "audit", args.model, table(folder / "facts.tsv", n), "--num-prompts", "1", "--force", "--out", folder / "audit",
        "--seed", time.time_ns() % 2**31])  # a new seed avoids the audit cache


def step(model, learn, folder, *sets, threads):
    """Median time of an SFT step after the first, its tokens, and the peak memory of the run."""
    plain = settings(data__audit="false", measure__paraphrase="false", train__num_epochs=1, train__learning_rate=1e-12)
    out = folder / "run"
    _, peak, _ = measured([PROGRAM, "tune", model, "--learn", learn, "--method", "sft", "--force", "--out", out,
                           "--threads", threads, *plain, *sets])
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in steps if row["type"] == "step"][1:]
    return statistics.median(row["seconds"] for row in steps), statistics.median(row["tokens"] for row in steps), peak


def tokens(args, folder):
    texts = folder / "texts.jsonl"
    for checkpointing in ("false", "true"):
        n = 128
        while n <= min(args.most, 8192):
            text = " ".join(f"{i % 10}" for i in range(n))  # a digit and a space: about two tokens
            texts.write_text("".join(json.dumps({"text": f"{row} {text}"}) + "\n" for row in range(4)))
            sets = settings(train__batch_size=1, train__max_length=n, train__truncate="true", train__gradient_checkpointing=checkpointing)
            seconds, of_step, peak = step(args.model, texts, folder, *sets, threads=args.threads)
            report("tokens", of_step, seconds, of_step, peak, gradient_checkpointing=checkpointing == "true")
            n *= 2


def sizes(args, folder):
    learn = table(folder / "facts.tsv", 160)
    for shape in SHAPES:
        made = folder / shape
        measured([sys.executable, Path(__file__).parent / "shapes.py", shape, args.tokenizer, made])
        weights = (made / "model.safetensors").stat().st_size / 2
        sets = settings(train__batch_size=32, train__max_grad_norm=0, train__optimizer_in_backward="true")
        seconds, _, peak = step(made, learn, folder, *sets, threads=args.threads)
        report("sizes", round(weights / 1e6), seconds, weights / 1e6, peak, shape=shape)
        (made / "model.safetensors").unlink()


def threads(args, folder):
    learn = table(folder / "facts.tsv", 320)
    n = 1
    while n <= (os.cpu_count() or 1):
        seconds, _, peak = step(args.model, learn, folder, *settings(train__batch_size=32), threads=n)
        report("threads", n, seconds, 1 / n, peak)
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
