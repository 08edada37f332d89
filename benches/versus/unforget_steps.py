"""Times the program itself at the work of `torch_steps.py`: same arguments, same JSON lines, from the records that it writes.

usage: unforget_steps.py HF_DIR FACTS.tsv sft|self-distill|evaluate|audit|load [--teacher hidden|live|topk] [--thrifty]
       [--batch-size 32] [--steps 10] [--chat-tokens 0] [--threads 2] ...
UNFORGET names the program (default: unforget).

A step's seconds are those of `metrics.jsonl`; an evaluation's too, of the model as it was given (after one step with a
vanishing rate); those of an audit, and of loading (until the first token of an answer is told), the whole command's. What the one pass of a
teacher that is not `live` took over the rows comes beside, as `teacher_seconds` a batch of them. Peak memory is the whole command's, loading and saving included.
"""

import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import arguments
from facts import chats

WARM_UP = 2


def unforget(folder, *args):
    """Runs the program with an empty cache in `folder`; what it says goes nowhere unless it fails."""
    command = [os.environ.get("UNFORGET", "unforget"), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"UNFORGET_CACHE": str(folder / "cache")})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def tune(args, folder, learn, held, method):
    """The rows of `metrics.jsonl` of one epoch on `learn`, beside which `held` is asked."""
    out = folder / method
    settings = {
        "data.audit": "false", "measure.paraphrase": "false", "method.snapshot_epochs": 0,
        "train.num_epochs": 1, "train.batch_size": args.batch_size, "train.learning_rate": 1e-12,
    }
    if method == "self-distill":
        settings["method.teacher"] = args.teacher
    if args.teacher == "topk":
        settings["method.vocab_subset"] = "{top=76}"
    if args.thrifty:
        settings |= {"train.max_grad_norm": 0, "train.optimizer_in_backward": "true", "train.gradient_checkpointing": "true"}
    if args.chat_tokens:
        settings |= {"train.max_length": args.chat_tokens, "train.truncate": "true"}
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    asked = ["--held", held] if held else []
    unforget(folder, "tune", args.model, "--learn", learn, *asked, "--out", out, "--method", method,
             "--threads", args.threads, *sets)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def main():
    parser = arguments.parser(__doc__)
    parser.add_argument("--teacher", choices=["hidden", "live", "topk"], default="hidden")
    parser.add_argument("--thrifty", action="store_true", help="hold one layer's gradients and activations, not those of all")
    args = parser.parse_args()

    header, *facts = Path(args.facts_file).read_text(encoding="utf-8").splitlines()
    row = {"engine": "unforget", "what": args.what}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def part(file, rows):
            path = folder / file
            path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
            return path

        if args.what in ("sft", "self-distill"):
            count = (WARM_UP + args.steps) * args.batch_size
            if args.chat_tokens:
                learn = folder / "chats.jsonl"
                learn.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats(count, args.chat_tokens)))
            else:
                learn = part("learn.tsv", facts[:count])
            metrics = tune(args, folder, learn, None, args.what)
            steps = [m for m in metrics if m["type"] == "step"][WARM_UP:]
            seconds = [m["seconds"] for m in steps]
            row |= {"batch_size": args.batch_size, "seconds": round(statistics.median(seconds), 4),
                    "seconds_min": round(min(seconds), 4), "tokens": statistics.median(m["tokens"] for m in steps)}
            row |= {"teacher": args.teacher} if args.what == "self-distill" else {}
            row |= {"thrifty": True} if args.thrifty else {}
            row |= {"teacher_seconds": round(m["seconds"] / (WARM_UP + args.steps), 4)
                    for m in metrics if m["type"] == "snapshot"}
        elif args.what == "evaluate":
            asked = facts[: args.facts]
            learn, held = part("learn.tsv", asked[: args.batch_size]), part("held.tsv", asked[args.batch_size :])
            last = [m for m in tune(args, folder, learn, held, "sft") if m["type"] == "eval"][-1]
            row |= {"facts": len(asked), "seconds": round(last["seconds"], 2), "right_held": round(last["accuracy"]["held"], 4)}
        elif args.what == "load":
            began = time.perf_counter()
            unforget(folder, "ask", args.model, "Q:", "--max-new-tokens", 1, "--threads", args.threads)
            row |= {"seconds": round(time.perf_counter() - began, 2)}
        else:
            asked = part("facts.tsv", facts[: args.facts])
            began = time.perf_counter()
            unforget(folder, "audit", args.model, asked, "--out", folder / "audit", "--runs", args.runs,
                     "--samples", args.samples, "--threads", args.threads)
            row |= {"facts": min(args.facts, len(facts)), "runs": args.runs, "samples": args.samples,
                    "seconds": round(time.perf_counter() - began, 2)}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps(row | {"peak_rss_bytes": peak, "threads": args.threads}), flush=True)


if __name__ == "__main__":
    main()
