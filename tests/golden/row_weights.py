"""Writes `remedies/row_weights.*`: ten steps on rows of different weights, by PyTorch, on the examples and the model of `qwen3/`.

usage: python row_weights.py    (after gen.py; the same packages)

The cross-entropy is a mean over target tokens, each with the weight of its row: sum of w ce / sum of w. The rows have 2 to 10
target tokens. Row 1 is also replayed with its label. The distillation term (equation 2) takes no notice of the weights.
"""

import copy
import json

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gen import CLIP, HERE, LAMBDA, LR, STEPS, WEIGHT_DECAY, answer_states
from remedies import GRADIENTS, divergence, write

WEIGHTS, REPLAYED = [2.0, 0.25, 1.0, 0.5], [1]


def weighted_mean(losses, weights):
    """Mean of the token losses of each row, every token with the weight of its row."""
    total = sum(w * loss.sum() for w, loss in zip(weights, losses))
    return total / sum(w * len(loss) for w, loss in zip(weights, losses))


def steps(model, rows, term, labelled):
    """Ten steps on the weighted cross-entropy of the examples `labelled` plus `term(logits of each example)`."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    record, first = {"ce": [], "term": [], "grad_norm": []}, None
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = [model.lm_head(h) for h in answer_states(model, rows)]
        losses = [F.cross_entropy(logits[i], torch.tensor(rows[i]["target"]), reduction="none") for i in labelled]
        ce, held = weighted_mean(losses, [WEIGHTS[i] for i in labelled]), term(logits)
        (ce + held).backward()
        first = first or {n: p.grad.clone() for n, p in model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        for name, value in [("ce", ce), ("term", held), ("grad_norm", norm)]:
            record[name].append(value.item())
    return record, first


def main():
    directory = HERE / "qwen3"
    golden, stored = json.loads((directory / "golden.json").read_text()), load_file(directory / "golden.safetensors")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).double()
    rows = golden["rows"]
    lengths = [len(r["target"]) for r in rows]
    taught = (stored["teacher.hidden"].double() @ stored["teacher.head"].double().T).split(lengths)

    every = list(range(len(rows)))
    runs = {
        "weighted": (lambda _: torch.zeros((), dtype=torch.float64), every),
        "weighted_distill": (lambda logits: LAMBDA * torch.stack([divergence(s, t) for s, t in zip(logits, taught)]).mean(), every + REPLAYED),
    }
    record, tensors = {"weights": WEIGHTS, "replayed": REPLAYED}, {}
    for name, (term, labelled) in runs.items():
        record[name], first = steps(model, rows, term, labelled)
        kept = first if name == "weighted" else {n: first[n] for n in GRADIENTS}
        tensors |= {f"{name}.gradient.{n}": g for n, g in kept.items()}
    write("row_weights", record, tensors)


if __name__ == "__main__":
    main()
