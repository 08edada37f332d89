"""Loads adapters with PEFT: their arrays must be bitwise identical to the file, and their logits equal those of the merged models.

usage: python load_adapter.py [BASE ADAPTER MERGED]...    (prints the largest difference, in units of the largest logit)
"""

import sys

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def check(base, adapter, merged):
    model = PeftModel.from_pretrained(load(base), adapter)
    stored, loaded = load_file(f"{adapter}/adapter_model.safetensors"), get_peft_model_state_dict(model)
    assert set(stored) == set(loaded), set(stored) ^ set(loaded)
    for name, tensor in stored.items():
        assert torch.equal(loaded[name], tensor), name

    ids = torch.randint(model.config.vocab_size, (4, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, ours, theirs = (m(input_ids=ids).logits for m in (load(base), load(merged), model))
    largest = theirs.abs().max()
    assert (plain - theirs).abs().max() > 1e-2 * largest, "an adapter that changes nothing shows nothing"
    apart = ((ours - theirs).abs().max() / largest).item()
    print(f"{adapter}: {apart:.1e}")
    # Both in float32, but merged before or after the matmul: differences up to 5e-6.
    assert apart < 2e-5, (adapter, apart)


arguments = sys.argv[1:]
for i in range(0, len(arguments), 3):
    check(*arguments[i : i + 3])
