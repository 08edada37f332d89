"""Drift between two models, by transformers and scipy: writes drift/drift.json next to this file.

usage: python drift.py    (torch, transformers, scipy)

The model before is a golden model of `gen.py`; the one after has every tensor w replaced by 0.9 w + 0.3 w', w' being w in the reverse
order: far enough that no measure is near zero. Everything is computed in float64, each prompt by itself and each pair by itself, the
metrics as appendix F of the paper writes them.
"""

import copy
import json
from pathlib import Path

import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
# (subject, object, question); one subject is not in its question, one answer occurs in no held-out fact.
NEW = [
    ("Bergamo", "Italy", "Which country is Bergamo located in?"),
    ("Lyon", "France", "Which country is Lyon located in?"),
    ("the eternal city", "Italy", "Which country is Rome located in?"),
    ("東京", "Japan", "Which country is 東京 located in?"),
    ("Denver", "United States of America", "Which country is Denver located in?"),
]
HELD = [
    ("Nice", "France", "Which country is Nice located in?"),
    ("Pisa", "Italy", "Which country is Pisa located in?"),
    ("Bonn", "Germany", "Which country is Bonn located in?"),
    ("Bari", "Italy", "Which country is Bari located in?"),
    ("Boston", "United States", "Which country is Boston located in?"),
]
# Two spellings of one answer.
SPELLING = {"United States of America": "United States"}


def look(model, tokenizer, fact, layer):
    """Hidden state at the last token of the subject, and logits at the answer position."""
    subject, _, question = fact
    prompt = f"Q: {question}\nA:"
    encoded = tokenizer(prompt, return_offsets_mapping=True)
    last = len(encoded["input_ids"]) - 1
    if subject in question:
        end = prompt.rindex(question) + question.rindex(subject) + len(subject)
        last = max(i for i, (a, b) in enumerate(encoded["offset_mapping"]) if end - len(subject) < b and a < end)
    with torch.no_grad():
        out = model(torch.tensor([encoded["input_ids"]]), output_hidden_states=True)
    # After the last layer, transformers returns the normalized stream: use the output of the layer instead.
    h = out.hidden_states[layer][0, last] if layer < model.config.num_hidden_layers else residual(model, encoded, last)
    return h / h.norm(), out.logits[0, -1]


def residual(model, encoded, last):
    kept = []
    hook = model.model.layers[-1].register_forward_hook(lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(torch.tensor([encoded["input_ids"]]))
    hook.remove()
    return kept[0].reshape(-1, kept[0].shape[-1])[last]


def measure(before, after, tokenizer, layer, k):
    seen = {}
    for name, model in (("before", before), ("after", after)):
        for kind, facts in (("new", NEW), ("held", HELD)):
            seen[name, kind] = [look(model, tokenizer, fact, layer) for fact in facts]

    def cos(name, a, b):
        return float(torch.dot(a[0], b[0]))

    def mean(values):
        values = list(values)
        return sum(values) / len(values) if values else None

    def top(logits):
        return torch.topk(logits, k).indices.tolist()

    h0, h = seen["before", "held"], seen["after", "held"]
    u0, u = seen["before", "new"], seen["after", "new"]
    indices = range(len(HELD))
    pairs = [
        (i, j)
        for i, new in enumerate(NEW)
        for j, held in enumerate(HELD)
        if SPELLING.get(new[1], new[1]) == SPELLING.get(held[1], held[1])
    ]
    rho, ntr, jsd = [], [], []
    for i, j in pairs:
        within = top(h0[j][1])
        z, z0 = u[i][1][within], h0[j][1][within]
        rho.append(float(spearmanr(z.numpy(), z0.numpy()).statistic))
        ntr.append(len(set(top(u[i][1])) & set(top(h[j][1]))) / k)
        # scipy returns the square root of the divergence.
        jsd.append(float(jensenshannon(torch.softmax(z, -1).numpy(), torch.softmax(z0, -1).numpy())) ** 2)
    return dict(
        layer=layer,
        tokens=k,
        rd=mean(1 - cos("", a, b) for a, b in zip(h0, h)),
        ns=mean(abs(cos("", h[i], h[j]) - cos("", h0[i], h0[j])) for i in indices for j in indices),
        mtd=mean(cos("", h[j], u[i]) - cos("", h0[j], u0[i]) for i in range(len(NEW)) for j in indices),
        rank_rho=mean(rho),
        ntr=mean(ntr),
        jsd=mean(jsd),
        pairs=len(pairs),
    )


def changed(model):
    after = copy.deepcopy(model)
    with torch.no_grad():
        for w in after.parameters():
            flat = w.flatten()
            w.copy_((0.9 * flat + 0.3 * flat.flip(0)).reshape(w.shape))
    return after


def main():
    record = dict(new=NEW, held=HELD, models={})
    for name in ["llama", "qwen3"]:
        tokenizer = AutoTokenizer.from_pretrained(HERE / name)
        before = AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float64).eval()
        after = changed(before)
        layers = before.config.num_hidden_layers
        middle = max(layers // 2, 1)
        record["models"][name] = [measure(before, after, tokenizer, layer, k) for layer, k in [(middle, 12), (0, 2), (layers, 40)]]
    # Rank correlations with ties.
    ties = [([3.0, 1.0, 3.0, 2.0, 3.0], [1.0, 1.0, 2.0, 2.0, 5.0]), ([0.5, 0.5, 0.25, 0.5], [4.0, 3.0, 2.0, 1.0])]
    record["ties"] = [dict(a=a, b=b, rho=float(spearmanr(a, b).statistic)) for a, b in ties]
    (HERE / "drift").mkdir(exist_ok=True)
    (HERE / "drift" / "drift.json").write_text(json.dumps(record, ensure_ascii=False) + "\n")


main()
