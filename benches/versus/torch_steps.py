"""Times what PyTorch and transformers take for the work that `unforget` does. One JSON line for each measurement.

usage: torch_steps.py HF_DIR FACTS.tsv WHAT [--variant best|usual] [--batch-size 32] [--steps 10] [--chat-tokens 0] [--threads 2]

WHAT is one of
  sft            a training step: forward, cross-entropy, backward, clipping, AdamW
  self-distill   the same with a live teacher's forward and equation 2
  evaluate       greedy answers to `--facts` facts at the training prompt
  load           the model from its files to its first token; what Python takes to import its libraries is not counted
  audit          SLiCK of `--facts` facts: `--runs` prompts of 3 examples, greedy and `--samples` samples each

`best` is fused AdamW and the head on answer positions alone; `usual` is what a plain training script does: logits at
every position, the labels of the prompt ignored, AdamW as it comes. For answers `best` decodes batches of equal length
behind a prefix that is read once, and drops finished rows; `usual` calls `generate` on padded batches. A process measures one thing, so that its peak
memory is that thing's. `run.sh` sets the allocator's tunables for huge pages, without which PyTorch spends up to half of its time
in page faults.

Each line: {"engine": "pytorch", "what", "variant", "batch_size" | "facts", "seconds" (a step's median, or the whole),
"seconds_min", "tokens" (of a step, padding not counted), "peak_rss_bytes", "threads"}.
"""

import copy
import json
import random
import resource
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import arguments
from answers import answering
from facts import chats, is_right, prompt_text, read_tsv, target_text
from torch_tune import STEPS, tokenised

WARM_UP = 2
TAU = 0.5


def tokenised_chat(tokenizer, chat, tokens):
    """Ids of a chat up to its answer, and of that, both together no more than `tokens`."""
    as_text = lambda messages, **asked: tokenizer.apply_chat_template(messages, tokenize=False, **asked)
    ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids
    before, whole = as_text(chat[:1], add_generation_prompt=True), as_text(chat)
    prompt = ids(before)
    return prompt, ids(whole[len(before) :])[: tokens - len(prompt)]


def step_seconds(model, tokenizer, facts, args):
    """Seconds of each timed step, and the tokens of a step (the median)."""
    if args.chat_tokens:
        rows = [tokenised_chat(tokenizer, chat, args.chat_tokens)
                for chat in chats((WARM_UP + args.steps) * args.batch_size, args.chat_tokens)]
    else:
        rows = [tokenised(tokenizer, fact) for fact in facts]
    random.Random(0).shuffle(rows)
    pad = tokenizer.pad_token_id or 0
    teacher = copy.deepcopy(model).eval().requires_grad_(False) if args.what == "self-distill" else None
    fused = args.variant == "best" or None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=fused)
    model.train()
    seconds, tokens = [], []
    for step in range(WARM_UP + args.steps):
        start = step * args.batch_size % (len(rows) - args.batch_size + 1)
        batch = rows[start : start + args.batch_size]
        began = time.perf_counter()
        STEPS[args.variant](model, teacher, optimizer, batch, pad, 1.0, TAU, 1.0)
        seconds.append(time.perf_counter() - began)
        tokens.append(sum(len(prompt) + len(target) for prompt, target in batch))
    return seconds[WARM_UP:], statistics.median(tokens)


def evaluate(model, tokenizer, facts, answer):
    """Asks every fact once, greedily; returns the share that is right."""
    answers = answer(model, tokenizer, [prompt_text(f) for f in facts])
    return sum(map(is_right, answers, facts)) / len(facts)


def audit(model, tokenizer, facts, answer, args):
    """Asks every fact behind every few-shot prefix, greedily and by samples; returns the share of greedy right answers."""
    rng = random.Random(0)
    prompts = [prompt_text(f) for f in facts]
    right = 0
    for _ in range(args.runs):
        prefix = "".join(prompt_text(f) + target_text(f) for f in rng.sample(facts, 3))
        right += sum(map(is_right, answer(model, tokenizer, prompts, prefix), facts))
        for _ in range(args.samples):
            answer(model, tokenizer, prompts, prefix, temperature=0.5)
    return right / args.runs / len(facts)


def main():
    parser = arguments.parser(__doc__)
    parser.add_argument("--variant", choices=list(STEPS), default="best")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    began = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    facts = read_tsv(args.facts_file)
    row = {"engine": "pytorch", "what": args.what}
    if args.what in ("sft", "self-distill"):
        seconds, tokens = step_seconds(model, tokenizer, facts, args)
        row |= {"variant": args.variant, "batch_size": args.batch_size, "seconds": round(statistics.median(seconds), 4),
                "seconds_min": round(min(seconds), 4), "tokens": tokens}
    elif args.what == "load":
        with torch.no_grad():
            model(**tokenizer("Q:", return_tensors="pt")).logits[0, -1].argmax().item()
        row |= {"variant": args.variant, "seconds": round(time.perf_counter() - began, 2)}
    else:
        facts = facts[: args.facts]
        answer = answering(args.variant)
        row |= {"variant": args.variant}
        began = time.perf_counter()
        if args.what == "evaluate":
            share = evaluate(model, tokenizer, facts, answer)
        else:
            share = audit(model, tokenizer, facts, answer, args)
            row |= {"runs": args.runs, "samples": args.samples}
        row |= {"facts": len(facts), "seconds": round(time.perf_counter() - began, 2), "right": round(share, 4)}
    row |= {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "threads": args.threads}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
