"""Writes `lora/`: ten steps on low-rank adapters by the PEFT library, on the examples and the model of `qwen3/`.

usage: python lora.py    (after gen.py; the same packages and peft 0.21)

Everything in float64, stored as float32. Each variant has its loss and gradient norm at every step, the gradients of the
first step and the adapters after the last. They begin with a B that is not zero, or A would have no gradient, and with
magnitudes away from the rows' lengths; all variants begin alike. Names are those under which PEFT saves an adapter.

Printed for each variant: how far PEFT's own float32 lies from the float64 stored here, as `gen.py` does.
"""

import copy
import json

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from gen import CLIP, HERE, LR, STEPS, WEIGHT_DECAY, answer_states, deviation

RANK, ALPHA, TARGETS = 4, 6, ["q_proj", "v_proj", "down_proj"]
VARIANTS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


def saved_name(name):
    """A parameter's name as `save_pretrained` writes it."""
    return name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector").replace(".default", "")


def adapted(base, start, **variant):
    """The model with the adapters in `start`; missing ones are sampled and added to it."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM", **variant)
    model = get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(400)
    trained = {saved_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == set(get_peft_model_state_dict(model))
    with torch.no_grad():
        for name, p in trained.items():
            if name not in start:
                noise = torch.randn(p.shape, generator=generator)
                start[name] = (p * (1 + 0.1 * noise) if "magnitude" in name else 0.2 * noise).float()
            p.copy_(start[name])
    return model, trained


def ten_steps(base, rows, start, **variant):
    model, trained = adapted(base, start, **variant)
    optimizer = torch.optim.AdamW(trained.values(), lr=LR, weight_decay=WEIGHT_DECAY)
    targets = torch.tensor([t for row in rows for t in row["target"]])
    record, first = {"ce": [], "grad_norm": []}, None
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = [model.lm_head(h) for h in answer_states(model.get_base_model(), rows)]
        loss = F.cross_entropy(torch.cat(logits), targets)
        loss.backward()
        first = first or {n: p.grad.clone() for n, p in trained.items()}
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)
        assert norm > CLIP, "every step is to be clipped"
        optimizer.step()
        record["ce"].append(loss.item())
        record["grad_norm"].append(norm.item())
    return record, first, {n: p.detach() for n, p in trained.items()}


def main():
    directory = HERE / "qwen3"
    rows = json.loads((directory / "golden.json").read_text())["rows"]
    single = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    exact = copy.deepcopy(single).double()
    record = {"rank": RANK, "alpha": ALPHA, "targets": TARGETS}
    start, tensors = {}, {}
    for name, variant in VARIANTS.items():
        record[name], gradients, after = ten_steps(exact, rows, start, **variant)
        tensors |= {f"{name}.gradient.{n}": g for n, g in gradients.items()}
        tensors |= {f"{name}.after.{n}": w for n, w in after.items()}
        rough, rough_gradients, rough_after = ten_steps(single, rows, start, **variant)
        figures = [torch.tensor([r["ce"], r["grad_norm"]], dtype=torch.float64) for r in (rough, record[name])]
        relative = ((figures[0] - figures[1]) / figures[1]).abs().max().item()
        apart = torch.cat([(rough_after[n].double() - after[n]).abs().flatten() for n in after])
        print(f"{name:8} losses, norms {relative:.1e} gradient {deviation(rough_gradients, gradients):.1e}"
              f" after {apart.max().item():.1e} (mean {apart.mean().item():.1e})"
              f" | norms {min(record[name]['grad_norm']):.2f} to {max(record[name]['grad_norm']):.2f}")
    tensors |= {f"start.{n}": w for n, w in start.items()}
    out = HERE / "lora"
    out.mkdir(exist_ok=True)
    save_file({n: t.detach().float().contiguous() for n, t in tensors.items()}, out / "lora.safetensors")
    (out / "lora.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
