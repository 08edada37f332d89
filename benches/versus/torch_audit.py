"""SLiCK labels by generation with transformers. The few-shot prefix of a prompt is encoded once.

usage: torch_audit.py HF_DIR FACTS.tsv --exemplars FACTS.tsv [--num-prompts 20] [--shots 3] [--samples 16] --out OUT.jsonl

Writes the facts with `greedy_correct` (per prompt), `sampled_correct` (a count) and `label`; prints one JSON line with the
fraction of each label and the time. Samples only separate WeaklyKnown from Unknown, so facts with a correct greedy answer are not
sampled unless `--sample-all` is set.
"""

import argparse
import json
import random
import time
from collections import Counter

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from answers import answering
from facts import is_correct, prompt_text, read_tsv, target_text


def label(greedy_correct, sampled_correct):
    """SLiCK's four labels."""
    if all(greedy_correct):
        return "HighlyKnown"
    if any(greedy_correct):
        return "MaybeKnown"
    return "WeaklyKnown" if sampled_correct else "Unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("facts")
    parser.add_argument("--exemplars", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--num-prompts", type=int, default=20)
    parser.add_argument("--shots", type=int, default=3)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--top-k", type=int, default=40)
    parser.add_argument("--sample-all", action="store_true")
    parser.add_argument("--variant", choices=["best", "usual"], default="best")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    facts, exemplars = read_tsv(args.facts), read_tsv(args.exemplars)
    answer_all = answering(args.variant)
    began = time.perf_counter()

    prefixes = []
    for _ in range(args.num_prompts):
        shots = rng.sample(exemplars, args.shots)
        prefixes.append("".join(prompt_text(f) + target_text(f) for f in shots))
    greedy_correct = [[] for _ in facts]
    for prefix in prefixes:
        answers = answer_all(model, tokenizer, [prompt_text(f) for f in facts], prefix)
        for correct, answer, fact in zip(greedy_correct, answers, facts):
            correct.append(is_correct(answer, fact))
    sampled_correct = [0] * len(facts)
    to_sample = [i for i in range(len(facts)) if args.sample_all or not any(greedy_correct[i])]
    for prefix in prefixes:
        prompts = [prompt_text(facts[i]) for i in to_sample for _ in range(args.samples)]
        answers = answer_all(model, tokenizer, prompts, prefix, temperature=args.temperature, top_k=args.top_k)
        for place, answer in enumerate(answers):
            i = to_sample[place // args.samples]
            sampled_correct[i] += is_correct(answer, facts[i])

    seconds = time.perf_counter() - began
    labels = [label(g, s) for g, s in zip(greedy_correct, sampled_correct)]
    with open(args.out, "w", encoding="utf-8") as file:
        for fact, greedy, sampled, name in zip(facts, greedy_correct, sampled_correct, labels):
            row = fact | {"greedy_correct": greedy, "sampled_correct": sampled, "label": name}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    fractions = {name: round(count / len(facts), 4) for name, count in sorted(Counter(labels).items())}
    print(json.dumps({"what": "audit", "facts": len(facts), "num_prompts": args.num_prompts, "samples": args.samples,
                      "label_fractions": fractions, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
