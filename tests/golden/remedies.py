"""Writes `remedies/`: ten steps under each remedy, by PyTorch, on the examples, the teacher and the model of `qwen3/`.

usage: python remedies.py    (after gen.py; the same packages)

Everything in float64, stored as float32. Each run has its terms and gradient norms at every step, the gradients of the
first step and the weights after the last. Anchored runs begin away from their anchor, or the first pull would be nothing:
the anchor is the model's weights times 1 + 0.05 noise. The Fisher information is a positive random number a weight.

Later runs have a file of their own each, and to keep it small two tensors' gradients alone: one of the head, and one that
all of the model lies behind. Their norms and the later steps are those of the whole.
"""

import copy
import json

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gen import CLIP, HERE, LAMBDA, LR, STEPS, TAU, WEIGHT_DECAY, answer_states

TOP = 20
L2, EWC = 0.03, 0.2
GRADIENTS = ["lm_head.weight", "model.layers.0.self_attn.q_proj.weight"]
# Indices of examples: trained, replayed with labels, and replayed with the teacher's distribution; some occur twice.
BATCH, LABELLED, TAUGHT, STRENGTH = [0, 2], [1, 0], [3, 1, 1], 0.7


def top_divergence(student, teacher):
    """Equation 5: KL over the teacher's top `TOP` tokens, both renormalized over them; sum of means over positions."""
    top = teacher.topk(TOP, -1).indices
    log_p = F.log_softmax(teacher.gather(-1, top) / TAU, -1)
    log_q = F.log_softmax(student.gather(-1, top) / TAU, -1)
    return TAU**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def divergence(student, teacher):
    """KL(teacher || student) over the full vocabulary, both softened; tau^2 times its mean over positions."""
    log_p, log_q = F.log_softmax(teacher / TAU, -1), F.log_softmax(student / TAU, -1)
    return TAU**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def others_divergence(student, teacher, targets):
    """Non-target part of decoupled distillation (Zhao et al. 2022), weighted by the teacher's non-target probability."""
    others = torch.ones_like(teacher, dtype=torch.bool).scatter(-1, targets[:, None], False)
    beside = lambda z: z[others].view(len(z), -1)
    log_p, log_q = F.log_softmax(beside(teacher / TAU), -1), F.log_softmax(beside(student / TAU), -1)
    mass = beside(F.softmax(teacher / TAU, -1)).sum(-1)
    return TAU**2 * (mass * (log_p.exp() * (log_p - log_q)).sum(-1)).mean()


def steps(model, rows, term, labelled):
    """Ten steps on the cross-entropy of the examples `labelled` plus `term(model, logits of each example)`."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    targets = torch.tensor([t for i in labelled for t in rows[i]["target"]])
    record, first = {"ce": [], "term": [], "grad_norm": []}, None
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = [model.lm_head(h) for h in answer_states(model, rows)]
        ce, held = F.cross_entropy(torch.cat([logits[i] for i in labelled]), targets), term(model, logits)
        (ce + held).backward()
        first = first or {n: p.grad.clone() for n, p in model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        for name, value in [("ce", ce), ("term", held), ("grad_norm", norm)]:
            record[name].append(value.item())
    return record, first, {n: p.detach() for n, p in model.named_parameters()}


def write(name, record, tensors):
    """The record and the tensors of the run `name`."""
    out = HERE / "remedies"
    out.mkdir(exist_ok=True)
    save_file({n: t.detach().float().contiguous() for n, t in tensors.items()}, out / f"{name}.safetensors")
    (out / f"{name}.json").write_text(json.dumps(record) + "\n")


def main():
    directory = HERE / "qwen3"
    golden, stored = json.loads((directory / "golden.json").read_text()), load_file(directory / "golden.safetensors")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).double()
    rows = golden["rows"]
    taught = (stored["teacher.hidden"].double() @ stored["teacher.head"].double().T).split([len(r["target"]) for r in rows])

    generator = torch.Generator().manual_seed(300)
    noise = lambda p: torch.randn(p.shape, generator=generator)
    anchor = {n: (p.detach() * (1 + 0.05 * noise(p))).float() for n, p in model.named_parameters()}
    fisher = {n: noise(p).square().float() for n, p in model.named_parameters()}

    def distance(model, weight):
        return sum((weight(n) * (p - anchor[n].double()).square()).sum() for n, p in model.named_parameters())

    terms = {
        "top": lambda _, logits: LAMBDA * torch.stack([top_divergence(s, t) for s, t in zip(logits, taught)]).mean(),
        "l2": lambda model, _: L2 * distance(model, lambda _: 1.0),
        "ewc": lambda model, _: EWC / 2 * distance(model, lambda n: fisher[n].double()),
    }
    record = {"top": {"count": TOP}, "l2": {"strength": L2}, "ewc": {"strength": EWC}}
    tensors = {f"anchor.{n}": w for n, w in anchor.items()} | {f"fisher.{n}": w for n, w in fisher.items()}
    for name, term in terms.items():
        run, gradients, after = steps(model, rows, term, range(len(rows)))
        record[name] |= run
        tensors |= {f"{name}.gradient.{n}": g for n, g in gradients.items()}
        tensors |= {f"{name}.after.{n}": w for n, w in after.items()}
    write("remedies", record, tensors)

    repeated = lambda _, logits: STRENGTH * torch.stack([divergence(logits[i], taught[i]) for i in TAUGHT]).mean()
    run, gradients, _ = steps(model, rows, repeated, BATCH + LABELLED)
    settings = {"batch": BATCH, "labelled": LABELLED, "taught": TAUGHT, "strength": STRENGTH}
    write("replay", {"replay": settings | run}, {f"replay.gradient.{n}": gradients[n] for n in GRADIENTS})

    # A teacher with increasing confidence in the target: its hidden states, moved along the target's row of the head. Its
    # non-target probability goes from 1 down to 1e-6.
    head, hidden = stored["teacher.head"].double(), stored["teacher.hidden"].double()
    targets = torch.tensor([t for row in rows for t in row["target"]])
    right = head[targets]
    surer = torch.linspace(0, 20, len(targets), dtype=torch.float64)[:, None] / right.square().sum(-1, keepdim=True)
    hidden = (hidden + surer * right).float()
    lengths = [len(r["target"]) for r in rows]
    sure = (hidden.double() @ head.T).split(lengths)
    beside = lambda _, logits: LAMBDA * torch.stack(
        [others_divergence(s, t, y) for s, t, y in zip(logits, sure, targets.split(lengths))]).mean()
    run, gradients, _ = steps(model, rows, beside, range(len(rows)))
    tensors = {"teacher.hidden": hidden} | {f"decoupled.gradient.{n}": gradients[n] for n in GRADIENTS}
    write("decoupled", {"decoupled": run}, tensors)


if __name__ == "__main__":
    main()
