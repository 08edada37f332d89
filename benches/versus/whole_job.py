"""The whole job on both sides: audit facts, tune on some of them with self-distillation, audit again.

usage: whole_job.py HF_DIR FACTS.tsv [--facts 1000] [--train 500] [--runs 20] [--epochs 10] [--torch-runs 1] [--torch-facts 250]
       [--torch-epochs 10] ...

Both sides audit the first `--facts` facts behind `--runs` prompts of 3 examples, greedily and with `--samples` samples; train
`--epochs` epochs, evaluated after each, on `--train` of them: a fifth that is known best and the others known least, as the
program's audit found; hold out as many as a tenth, known next best; and audit what came out. PyTorch's audits take hours:
it audits `--torch-facts` facts behind `--torch-runs` prompts, and `seconds_scaled` is what all would take, the work being
proportional to both; likewise of its training where `--torch-epochs` are fewer.

UNFORGET names the program (default: unforget). A JSON line for each part, and for each variant of the other side one with the
ratios of the whole: {"what": "whole job", "variant", "times_as_fast", "of_its_memory"}.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from facts import read_tsv, write_tsv
from measured import measured, settings

HERE = Path(__file__).parent
KEEPS_HUGE_PAGES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184"


class Job:
    """One side's parts: seconds and memory of each, told as they come."""

    def __init__(self, engine, variant=None):
        self.names = {"engine": engine} | ({"variant": variant} if variant else {})
        self.seconds = self.bytes = 0

    def did(self, part, seconds, peak, **more):
        """Tells of a part that took `seconds`, scaled where that is said."""
        print(json.dumps(self.names | {"what": part, "seconds": round(seconds, 1), **more, "peak_rss_bytes": peak}), flush=True)
        self.seconds += more.get("seconds_scaled", seconds)
        self.bytes = max(self.bytes, peak)


def ours(args, folder):
    """The program's side. Leaves in `folder/splits` what both train on."""
    job, program = Job("unforget"), os.environ.get("UNFORGET", "unforget")
    own_cache = {"UNFORGET_CACHE": str(folder / "cache")}

    def audit(part, model, out):
        command = [program, "audit", model, folder / "facts.tsv", "--out", folder / out]
        sizes = ["--runs", args.runs, "--samples", args.samples, "--threads", args.threads]
        seconds, peak, _ = measured([*command, *sizes], **own_cache)
        job.did(part, seconds, peak, facts=args.facts, runs=args.runs, samples=args.samples)

    audit("audit", args.model, "before")
    split(args, folder)
    splits = folder / "splits"
    sets = settings(data__audit="false", measure__paraphrase="false", train__epochs=args.epochs, train__lr=args.lr,
                    train__batch_size=args.batch_size)
    files = ["--keep", splits / "known.tsv", "--learn", splits / "unknown.tsv", "--held", splits / "held.tsv"]
    command = [program, "tune", args.model, *files, "--method", "self-distill", "--out", folder / "run", "--threads", args.threads]
    seconds, peak, _ = measured([*command, *sets], **own_cache)
    result = json.loads((folder / "run/result.json").read_text())
    accuracy = {name: of["after"] for name, of in result["accuracy"].items() if name in ("known", "unknown", "held")}
    job.did("tune", seconds, peak, epochs=args.epochs, **accuracy)
    audit("audit of what came out", folder / "run/model", "after")
    return job


def split(args, folder):
    """Known, unknown and held-out facts by the audit's greedy answers."""
    audited = [json.loads(line) for line in (folder / "before/facts.jsonl").read_text().splitlines()]
    best = sorted(range(len(audited)), key=lambda i: (-sum(audited[i]["greedy_right"]), i))
    known, held = args.train // 5, args.facts // 10
    parts = {"known": best[:known], "held": best[known : known + held], "unknown": best[known - args.train :]}
    facts = read_tsv(folder / "facts.tsv")
    (folder / "splits").mkdir()
    for name, rows in parts.items():
        write_tsv(folder / f"splits/{name}.tsv", [facts[i] for i in rows])


def theirs(args, folder, variant):
    """PyTorch's side, at its best or as its users run it."""
    job = Job("pytorch", variant)
    environment = {"GLIBC_TUNABLES": KEEPS_HUGE_PAGES} if variant == "best" else {}
    shared = ["--threads", args.threads, "--variant", variant]
    few, runs = min(args.torch_facts, args.facts), min(args.torch_runs, args.runs)
    few_facts = folder / f"few-{few}.tsv"
    write_tsv(few_facts, read_tsv(folder / "facts.tsv")[:few])

    def audit(part, model, out):
        command = [sys.executable, HERE / "torch_audit.py", model, few_facts, "--exemplars", folder / "facts.tsv"]
        sizes = ["--runs", runs, "--samples", args.samples, "--out", folder / out]
        seconds, peak, printed = measured([*command, *sizes, *shared], **environment)
        asking = json.loads(printed.splitlines()[-1])["seconds"]
        scaled = seconds - asking + asking * (args.runs / runs) * (args.facts / few)
        job.did(part, seconds, peak, seconds_scaled=round(scaled, 1), facts=few, runs=runs, samples=args.samples)

    audit("audit", args.model, f"before-{variant}.jsonl")
    command = [sys.executable, HERE / "torch_tune.py", args.model, folder / "splits", "--method", "self-distill"]
    epochs = min(args.torch_epochs or args.epochs, args.epochs)
    sizes = ["--epochs", epochs, "--batch-size", args.batch_size, "--lr", args.lr, "--save", folder / variant]
    seconds, peak, printed = measured([*command, *sizes, *shared], **environment)
    before, last = (json.loads(line) for line in printed.splitlines()[-2:])
    scaled = seconds + (args.epochs - epochs) * (last["seconds"] - before["seconds"])
    right = {name: last[name] for name in ("known", "unknown", "held")}
    job.did("tune", seconds, peak, seconds_scaled=round(scaled, 1), epochs=epochs, **right)
    audit("audit of what came out", folder / variant, f"after-{variant}.jsonl")
    return job


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="HF_DIR")
    parser.add_argument("facts_file", metavar="FACTS.tsv")
    parser.add_argument("--facts", type=int, default=1000)
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--torch-facts", type=int, default=250)
    parser.add_argument("--torch-runs", type=int, default=1)
    parser.add_argument("--torch-epochs", type=int, help="the last of them, which is like those after it, stands for the others")
    parser.add_argument("--variants", nargs="*", choices=["best", "usual"], default=["best", "usual"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.torch_epochs is not None and args.torch_epochs < 2:
        parser.error("--torch-epochs: the first epoch, of known facts alone, is not like the others; take 2 or more")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = read_tsv(args.facts_file)[: args.facts]
        args.facts = len(facts)
        write_tsv(folder / "facts.tsv", facts)
        own = ours(args, folder)
        for variant in args.variants:
            other = theirs(args, folder, variant)
            ratios = {
                "what": "whole job", "variant": variant, "seconds": round(own.seconds, 1),
                "their_seconds_scaled": round(other.seconds, 1), "times_as_fast": round(other.seconds / own.seconds, 2),
                "of_its_memory": round(own.bytes / other.bytes, 3),
            }
            print(json.dumps(ratios), flush=True)


if __name__ == "__main__":
    main()
