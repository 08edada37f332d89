"""Measures `unforget` on the work of `torch_steps.py`, with the same arguments and JSON lines, from the records of its runs.

usage: unforget_steps.py HF_DIR FACTS.tsv sft|self-distill|evaluate|audit|load [--teacher hidden|online|topk] [--low-memory]
       [--lora-r 16]
       [--batch-size 32] [--steps 10] [--chat-tokens 0] [--threads 2] ...
UNFORGET is the program (default: unforget).

Times of steps and evaluations are those in `metrics.jsonl` (evaluation of the unchanged model: after one step with a learning rate
near zero). Times of audits and of loading (up to the first token of an answer) are those of the complete command.
`teacher_seconds` is the one-off teacher forward pass, per batch (not for `online`). Peak memory is that of the complete command.
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
    """Runs the program with an empty cache in `folder`; prints its output only if it fails."""
    command = [os.environ.get("UNFORGET", "unforget"), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"UNFORGET_CACHE": str(folder / "cache")})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def tune(args, folder, learn, held, method):
    """Trains one epoch on `learn`, evaluates `held`, and returns the rows of `metrics.jsonl`."""
    out = folder / method
    settings = {
        "data.audit": "false", "measure.paraphrase": "false", "measure.behaviour": "false", "method.snapshot_epochs": 0,
        "train.num_epochs": 1, "train.batch_size": args.batch_size, "train.learning_rate": 1e-12,
    }
    if method == "self-distill":
        settings["method.teacher"] = args.teacher
    if args.teacher == "topk":
        settings["method.vocab_subset"] = "{top=76}"
    if args.low_memory:
        settings |= {"train.max_grad_norm": 0, "train.optimizer_in_backward": "true", "train.gradient_checkpointing": "true"}
    if args.lora_r:
        settings["train.lora"] = f'{{r={args.lora_r}, target_modules="all-linear"}}'
    if args.chat_tokens:
        settings |= {"train.max_length": args.chat_tokens, "train.truncate": "true"}
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    held_args = ["--held", held] if held else []
    unforget(folder, "tune", args.model, "--learn", learn, *held_args, "--out", out, "--method", method,
             "--threads", args.threads, *sets)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def main():
    parser = arguments.parser(__doc__)
    parser.add_argument("--teacher", choices=["hidden", "online", "topk"], default="hidden")
    parser.add_argument("--low-memory", action="store_true", help="hold the gradients and activations of one layer at a time")
    parser.add_argument("--lora-r", type=int, default=0, help="train adapters of this rank on all linear layers")
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
            row |= {"low_memory": True} if args.low_memory else {}
            row |= {"teacher_seconds": round(m["seconds"] / (WARM_UP + args.steps), 4)
                    for m in metrics if m["type"] == "snapshot"}
        elif args.what == "evaluate":
            evaluated = facts[: args.facts]
            learn, held = part("learn.tsv", evaluated[: args.batch_size]), part("held.tsv", evaluated[args.batch_size :])
            last = [m for m in tune(args, folder, learn, held, "sft") if m["type"] == "eval"][-1]
            row |= {"facts": len(evaluated), "seconds": round(last["seconds"], 2), "accuracy_held": round(last["accuracy"]["held"], 4)}
        elif args.what == "load":
            began = time.perf_counter()
            unforget(folder, "ask", args.model, "Q:", "--max-new-tokens", 1, "--threads", args.threads)
            row |= {"seconds": round(time.perf_counter() - began, 2)}
        else:
            audited = part("facts.tsv", facts[: args.facts])
            began = time.perf_counter()
            unforget(folder, "audit", args.model, audited, "--out", folder / "audit", "--num-prompts", args.num_prompts,
                     "--samples", args.samples, "--threads", args.threads)
            row |= {"facts": min(args.facts, len(facts)), "num_prompts": args.num_prompts, "samples": args.samples,
                    "seconds": round(time.perf_counter() - began, 2)}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps(row | {"peak_rss_bytes": peak, "threads": args.threads}), flush=True)


if __name__ == "__main__":
    main()
