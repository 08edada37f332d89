"""SFT, self-distillation or Only Known on split files with PyTorch; one JSON line of accuracies per epoch.

usage: torch_tune.py HF_DIR SPLITS --method sft|self-distill|only-known [--seed 0] [--epochs 6] [--save DIR] ...

SPLITS contains known.tsv and unknown.tsv (trained) and held.tsv (evaluated only).
Self-distillation is L = CE + lambda * mean over examples of tau^2 * mean over target tokens of
KL(softmax(teacher / tau) || softmax(student / tau)), where the teacher is a copy of the model after `--snapshot-epochs` epochs on
the known facts. `best` and `usual` are those of `torch_steps.py`.
"""

import argparse
import copy
import json
import random
import time

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from answers import answering
from facts import is_correct, prompt_text, read_tsv, target_text

IGNORED = -100


def tokenised(tokenizer, fact):
    """Token ids of prompt and target, tokenised separately."""
    return tokenizer(prompt_text(fact)).input_ids, tokenizer(target_text(fact), add_special_tokens=False).input_ids


def padded(rows, pad):
    """Inputs and labels; right padding needs no mask in a causal model."""
    width = max(len(prompt) + len(target) for prompt, target in rows) - 1
    inputs = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), IGNORED)
    for i, (prompt, target) in enumerate(rows):
        inputs[i, : len(prompt) + len(target) - 1] = torch.tensor((prompt + target)[:-1])
        labels[i, len(prompt) - 1 : len(prompt) + len(target) - 1] = torch.tensor(target)
    return inputs, labels


def answer_logits(model, inputs, labels):
    """Logits at the answer positions: (P, V)."""
    return model.lm_head(model.model(input_ids=inputs).last_hidden_state[labels != IGNORED])


def distillation(student, teacher, lengths, tau):
    """Equation 2: mean over examples of tau^2 * mean over its target tokens of KL(teacher || student)."""
    log_p, log_q = F.log_softmax(teacher / tau, -1), F.log_softmax(student / tau, -1)
    per_token = (log_p.exp() * (log_p - log_q)).sum(-1)
    return tau**2 * torch.stack([part.mean() for part in per_token.split(lengths)]).mean()


def training_step(model, teacher, optimizer, rows, pad, lam, tau, clip):
    """One optimiser step; returns the loss and the gradient norm before clipping."""
    inputs, labels = padded(rows, pad)
    logits = answer_logits(model, inputs, labels)
    loss = F.cross_entropy(logits, labels[labels != IGNORED])
    if teacher is not None:
        with torch.no_grad():
            soft = answer_logits(teacher, inputs, labels)
        loss = loss + lam * distillation(logits, soft, [len(target) for _, target in rows], tau)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item(), norm.item()


def usual_step(model, teacher, optimizer, rows, pad, lam, tau, clip):
    """The same with logits at every position."""
    inputs, labels = padded(rows, pad)
    logits = model(input_ids=inputs, attention_mask=(inputs != pad).long(), use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    if teacher is not None:
        with torch.no_grad():
            soft = teacher(input_ids=inputs, attention_mask=(inputs != pad).long(), use_cache=False).logits
        answers = labels != IGNORED
        loss = loss + lam * distillation(logits[answers], soft[answers], [len(target) for _, target in rows], tau)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), norm.item()


STEPS = {"best": training_step, "usual": usual_step}


def accuracy(model, tokenizer, facts, answer):
    """Accuracy of greedy answers."""
    answers = answer(model, tokenizer, [prompt_text(f) for f in facts])
    return sum(map(is_correct, answers, facts)) / max(1, len(facts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("splits")
    parser.add_argument("--method", choices=["sft", "self-distill", "only-known"], required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--lambda", dest="lam", type=float, default=1.0)
    parser.add_argument("--tau", type=float, default=0.5)
    parser.add_argument("--snapshot-epochs", type=int, default=1)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--unknown", type=int, help="train on the first N unknown facts only")
    parser.add_argument("--eval-unknown", type=int, help="evaluate the first N unknown facts only")
    parser.add_argument("--in-order", action="store_true", help="known, then new facts, in file order (`train.shuffle=false`)")
    parser.add_argument("--variant", choices=list(STEPS), default="best")
    parser.add_argument("--save", metavar="DIR", help="write model and tokenizer there at the end")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0, fused=args.variant == "best" or None)
    facts = {name: read_tsv(f"{args.splits}/{name}.tsv") for name in ["known", "unknown", "held"]}
    new = facts["unknown"][: args.unknown]
    evaluated = facts | {"unknown": new[: args.eval_unknown]}
    pad = tokenizer.pad_token_id or 0
    teacher = None
    began = time.perf_counter()

    def report(epoch, loss):
        accuracies = {name: round(accuracy(model, tokenizer, rows, answering(args.variant)), 4) for name, rows in evaluated.items()}
        seconds = round(time.perf_counter() - began, 1)
        row = {"method": args.method, "seed": args.seed, "epoch": epoch, "loss": loss, **accuracies, "seconds": seconds}
        print(json.dumps(row), flush=True)

    report(0, None)
    for epoch in range(1, args.epochs + 1):
        distilling = args.method == "self-distill"
        if distilling and epoch == args.snapshot_epochs + 1:
            teacher = copy.deepcopy(model).eval().requires_grad_(False)
        known_only = args.method == "only-known" or distilling and epoch <= args.snapshot_epochs
        data = facts["known"] + ([] if known_only else new)
        if not args.in_order:
            rng.shuffle(data)
        model.train()
        total = 0.0
        for start in range(0, len(data), args.batch_size):
            rows = [tokenised(tokenizer, f) for f in data[start : start + args.batch_size]]
            loss, _ = STEPS[args.variant](model, teacher, optimizer, rows, pad, args.lam, args.tau, args.max_grad_norm)
            total += loss * len(rows)
        report(epoch, round(total / len(data), 4))
    if args.save:
        model.save_pretrained(args.save)
        tokenizer.save_pretrained(args.save)


if __name__ == "__main__":
    main()
