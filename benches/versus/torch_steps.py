"""Measures PyTorch and transformers on the work that `unforget` does. One JSON line per measurement.

usage: torch_steps.py HF_DIR FACTS.tsv WHAT [--variant best|usual] [--batch-size 32] [--steps 10] [--chat-tokens 0] [--threads 2]

WHAT is one of
  sft            a training step: forward, cross-entropy, backward, clipping, AdamW
  self-distill   the same with a teacher forward pass and equation 2
  evaluate       greedy answers to `--facts` facts at the training prompt
  load           the model from its files to its first token, without the time to import Python libraries
  audit          SLiCK of `--facts` facts: `--num-prompts` prompts of 3 examples, greedy and `--samples` samples each

`best` uses fused AdamW and computes the LM head at answer positions only. `usual` is an ordinary training script: logits at
every position, prompt labels ignored, default AdamW. For answers `best` decodes batches of equal length
after a prefix that is encoded once, and drops finished rows; `usual` calls `generate` on padded batches. Each process measures one thing, so its peak
memory belongs to that. `run.sh` sets the allocator's tunables for huge pages; without them PyTorch spends up to half of its time
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
from facts import chats, is_correct, prompt_text, read_tsv, target_text
from torch_tune import STEPS, tokenised

WARM_UP = 2
TAU = 0.5


def tokenised_chat(tokenizer, chat, tokens):
    """Token ids of a chat before its answer and of the answer, at most `tokens` together."""
    as_text = lambda messages, **options: tokenizer.apply_chat_template(messages, tokenize=False, **options)
    ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids
    before, whole = as_text(chat[:1], add_generation_prompt=True), as_text(chat)
    prompt = ids(before)
    return prompt, ids(whole[len(before) :])[: tokens - len(prompt)]


def step_seconds(model, tokenizer, facts, args):
    """Time of each measured step in seconds, and the median number of tokens per step."""
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
    """Greedy answers to all facts; returns the accuracy."""
    answers = answer(model, tokenizer, [prompt_text(f) for f in facts])
    return sum(map(is_correct, answers, facts)) / len(facts)


def audit(model, tokenizer, facts, answer, args):
    """Greedy answers and samples for every fact under every few-shot prefix; returns the greedy accuracy."""
    rng = random.Random(0)
    prompts = [prompt_text(f) for f in facts]
    correct = 0
    for _ in range(args.num_prompts):
        prefix = "".join(prompt_text(f) + target_text(f) for f in rng.sample(facts, 3))
        correct += sum(map(is_correct, answer(model, tokenizer, prompts, prefix), facts))
        for _ in range(args.samples):
            answer(model, tokenizer, prompts, prefix, temperature=0.5)
    return correct / args.num_prompts / len(facts)


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
            accuracy = evaluate(model, tokenizer, facts, answer)
        else:
            accuracy = audit(model, tokenizer, facts, answer, args)
            row |= {"num_prompts": args.num_prompts, "samples": args.samples}
        row |= {"facts": len(facts), "seconds": round(time.perf_counter() - began, 2), "accuracy": round(accuracy, 4)}
    row |= {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "threads": args.threads}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
