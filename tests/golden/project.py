"""Writes `project/`: the subspaces of known inputs and ten projected steps, by PyTorch, on the examples and the model of `qwen3/`.

usage: python project.py    (after gen.py; the same packages)

Everything in float64, stored as float32. Hooks on the `nn.Linear` modules take what they read; eigenvectors are those of
`torch.linalg.eigh`, and what is stored of a space is its projector U U^T, since eigenvectors have signs and may turn among
themselves. After each step of AdamW on the linear weights (clipped by their norm alone; all else is frozen) the step itself is
projected: W = W_before + (W - W_before)(I - U U^T). Stored are the losses and norms of every step and the weights
after the last.
"""

import copy
import json

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from gen import CLIP, HERE, LR, STEPS, WEIGHT_DECAY, answer_states

ENERGY = 0.9
# The module whose input represents each group: k and v share the input of q, up that of gate.
READ_BY = {"qkv": "self_attn.q_proj", "o": "self_attn.o_proj", "gate_up": "mlp.gate_proj", "down": "mlp.down_proj"}
GROUP = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "o", "gate": "gate_up", "up": "gate_up", "down": "down"}


def linear_layers(model):
    """All linear layers of the decoder blocks by name, without the head."""
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}


@torch.no_grad()
def projectors(model, rows):
    """U U^T and its rank for each input, by the name of the module that represents it."""
    inputs, hooks = {}, []
    for name, module in linear_layers(model).items():
        keep = lambda _, args, name=name: inputs.setdefault(name, []).append(args[0][0].clone())
        hooks.append(module.register_forward_pre_hook(keep))
    answer_states(model, rows)
    for hook in hooks:
        hook.remove()
    found, ranks = {}, {}
    for name in inputs:
        if not name.endswith(tuple(READ_BY.values())):
            continue
        x = torch.cat(inputs[name])
        values, vectors = torch.linalg.eigh(x.T @ x)
        shares = values.flip(0).cumsum(0) / values.sum()
        assert (shares - ENERGY).abs().min() > 1e-3, "a near tie: choose another energy"
        rank = int((shares < ENERGY).sum()) + 1
        gap = (values[-rank] - values[-rank - 1]) / values[-1]
        print(f"{name}: rank {rank} of {len(values)}, gap to the next eigenvalue {gap:.1e} of the largest")
        u = vectors[:, -rank:]
        found[name], ranks[name] = u @ u.T, rank
    return found, ranks


def space_of(name):
    """The module that represents the input of the linear layer `name`."""
    layer, projection = name.rsplit(".", 2)[0], name.rsplit(".", 1)[1].removesuffix("_proj")
    return f"{layer}.{READ_BY[GROUP[projection]]}"


def main():
    directory = HERE / "qwen3"
    rows = json.loads((directory / "golden.json").read_text())["rows"]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).double()
    spaces, ranks = projectors(model, rows)

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained = {n: m.weight.requires_grad_(True) for n, m in linear_layers(model).items()}
    start = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(trained.values(), lr=LR, weight_decay=WEIGHT_DECAY)
    targets = torch.tensor([t for row in rows for t in row["target"]])
    record = {"energy": ENERGY, "ranks": ranks, "ce": [], "grad_norm": []}
    for _ in range(STEPS):
        optimizer.zero_grad()
        ce = F.cross_entropy(torch.cat([model.lm_head(h) for h in answer_states(model, rows)]), targets)
        ce.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)
        before = {n: w.detach().clone() for n, w in trained.items()}
        optimizer.step()
        with torch.no_grad():
            for name, weight in trained.items():
                step = weight - before[name]
                weight.copy_(before[name] + step - step @ spaces[space_of(name)])
        record["ce"].append(ce.item())
        record["grad_norm"].append(norm.item())

    tensors = {f"projector.{n}": p for n, p in spaces.items()} | {f"after.{n}.weight": w.detach() for n, w in trained.items()}
    moved = max((w - dict(start.named_parameters())[f"{n}.weight"]).abs().max().item() for n, w in trained.items())
    print(f"losses {record['ce'][0]:.4f} to {record['ce'][-1]:.4f}; the weight that moved most, by {moved:.1e}")
    out = HERE / "project"
    out.mkdir(exist_ok=True)
    save_file({n: t.float().contiguous() for n, t in tensors.items()}, out / "project.safetensors")
    (out / "project.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
