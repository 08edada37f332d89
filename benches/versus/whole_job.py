"""The complete job on both sides: audit facts, tune on some of them with self-distillation, audit again.

usage: whole_job.py HF_DIR FACTS.tsv [--facts 1000] [--train 500] [--num-prompts 20] [--epochs 10] [--torch-num-prompts 1] [--torch-facts 250]
       [--torch-epochs 10] ...

Both sides audit the first `--facts` facts under `--num-prompts` prompts of 3 exemplars, with one greedy answer and `--samples` samples.
They train `--epochs` epochs on `--train` of the facts, with an evaluation after each: a fifth are the best known facts of the
audit, the others the least known. A tenth of all facts, the next best known, are held out. Then they audit the result. PyTorch's
audits take hours: it audits `--torch-facts` facts under `--torch-num-prompts` prompts, and `seconds_scaled` is the proportional
estimate for all. The same holds for its training if `--torch-epochs` is smaller.

UNFORGET is the program (default: unforget). Prints a JSON line for each part, and for each PyTorch variant one with the
total ratios: {"what": "complete job", "variant", "speed_ratio", "memory_ratio"}.
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
    """The parts of one side: prints time and memory of each."""

    def __init__(self, engine, variant=None):
        self.names = {"engine": engine} | ({"variant": variant} if variant else {})
        self.seconds = self.bytes = 0

    def did(self, part, seconds, peak, **more):
        """Prints a part that took `seconds` (or `seconds_scaled`) and adds it to the total."""
        print(json.dumps(self.names | {"what": part, "seconds": round(seconds, 1), **more, "peak_rss_bytes": peak}), flush=True)
        self.seconds += more.get("seconds_scaled", seconds)
        self.bytes = max(self.bytes, peak)


def ours(args, folder):
    """Runs `unforget`. Writes the training data of both sides to `folder/splits`."""
    job, program = Job("unforget"), os.environ.get("UNFORGET", "unforget")
    own_cache = {"UNFORGET_CACHE": str(folder / "cache")}

    def audit(part, model, out):
        command = [program, "audit", model, folder / "facts.tsv", "--out", folder / out]
        sizes = ["--num-prompts", args.num_prompts, "--samples", args.samples, "--threads", args.threads]
        seconds, peak, _ = measured([*command, *sizes], **own_cache)
        job.did(part, seconds, peak, facts=args.facts, num_prompts=args.num_prompts, samples=args.samples)

    audit("audit", args.model, "before")
    split(args, folder)
    splits = folder / "splits"
    sets = settings(data__audit="false", measure__paraphrase="false", train__num_epochs=args.epochs, train__learning_rate=args.lr,
                    train__batch_size=args.batch_size)
    files = ["--keep", splits / "known.tsv", "--learn", splits / "unknown.tsv", "--held", splits / "held.tsv"]
    command = [program, "tune", args.model, *files, "--method", "self-distill", "--out", folder / "run", "--threads", args.threads]
    seconds, peak, _ = measured([*command, *sets], **own_cache)
    result = json.loads((folder / "run/result.json").read_text())
    accuracy = {name: of["after"] for name, of in result["accuracy"].items() if name in ("known", "unknown", "held")}
    job.did("tune", seconds, peak, epochs=args.epochs, **accuracy)
    audit("second audit", folder / "run/model", "after")
    return job


def split(args, folder):
    """Splits the facts into known, unknown and held out by the greedy answers of the audit."""
    audited = [json.loads(line) for line in (folder / "before/facts.jsonl").read_text().splitlines()]
    best = sorted(range(len(audited)), key=lambda i: (-sum(audited[i]["greedy_correct"]), i))
    known, held = args.train // 5, args.facts // 10
    parts = {"known": best[:known], "held": best[known : known + held], "unknown": best[known - args.train :]}
    facts = read_tsv(folder / "facts.tsv")
    (folder / "splits").mkdir()
    for name, rows in parts.items():
        write_tsv(folder / f"splits/{name}.tsv", [facts[i] for i in rows])


def theirs(args, folder, variant):
    """Runs PyTorch, tuned (`best`) or plain (`usual`)."""
    job = Job("pytorch", variant)
    environment = {"GLIBC_TUNABLES": KEEPS_HUGE_PAGES} if variant == "best" else {}
    shared = ["--threads", args.threads, "--variant", variant]
    few, num_prompts = min(args.torch_facts, args.facts), min(args.torch_num_prompts, args.num_prompts)
    few_facts = folder / f"few-{few}.tsv"
    write_tsv(few_facts, read_tsv(folder / "facts.tsv")[:few])

    def audit(part, model, out):
        command = [sys.executable, HERE / "torch_audit.py", model, few_facts, "--exemplars", folder / "facts.tsv"]
        sizes = ["--num-prompts", num_prompts, "--samples", args.samples, "--out", folder / out]
        seconds, peak, printed = measured([*command, *sizes, *shared], **environment)
        audit_seconds = json.loads(printed.splitlines()[-1])["seconds"]
        scaled = seconds - audit_seconds + audit_seconds * (args.num_prompts / num_prompts) * (args.facts / few)
        job.did(part, seconds, peak, seconds_scaled=round(scaled, 1), facts=few, num_prompts=num_prompts, samples=args.samples)

    audit("audit", args.model, f"before-{variant}.jsonl")
    command = [sys.executable, HERE / "torch_tune.py", args.model, folder / "splits", "--method", "self-distill"]
    epochs = min(args.torch_epochs or args.epochs, args.epochs)
    sizes = ["--epochs", epochs, "--batch-size", args.batch_size, "--lr", args.lr, "--save", folder / variant]
    seconds, peak, printed = measured([*command, *sizes, *shared], **environment)
    before, last = (json.loads(line) for line in printed.splitlines()[-2:])
    scaled = seconds + (args.epochs - epochs) * (last["seconds"] - before["seconds"])
    accuracy = {name: last[name] for name in ("known", "unknown", "held")}
    job.did("tune", seconds, peak, seconds_scaled=round(scaled, 1), epochs=epochs, **accuracy)
    audit("second audit", folder / variant, f"after-{variant}.jsonl")
    return job


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="HF_DIR")
    parser.add_argument("facts_file", metavar="FACTS.tsv")
    parser.add_argument("--facts", type=int, default=1000)
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--num-prompts", type=int, default=20)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--torch-facts", type=int, default=250)
    parser.add_argument("--torch-num-prompts", type=int, default=1)
    parser.add_argument("--torch-epochs", type=int, help="epochs that are run; the last one is extrapolated to the others")
    parser.add_argument("--variants", nargs="*", choices=["best", "usual"], default=["best", "usual"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.torch_epochs is not None and args.torch_epochs < 2:
        parser.error("--torch-epochs must be at least 2: the first epoch has known facts only")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = read_tsv(args.facts_file)[: args.facts]
        args.facts = len(facts)
        write_tsv(folder / "facts.tsv", facts)
        own = ours(args, folder)
        for variant in args.variants:
            other = theirs(args, folder, variant)
            ratios = {
                "what": "complete job", "variant": variant, "seconds": round(own.seconds, 1),
                "their_seconds_scaled": round(other.seconds, 1), "speed_ratio": round(other.seconds / own.seconds, 2),
                "memory_ratio": round(own.bytes / other.bytes, 3),
            }
            print(json.dumps(ratios), flush=True)


if __name__ == "__main__":
    main()
