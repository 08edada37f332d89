"""Writes `peft/`: adapters of the golden models, as `peft` saves them, and the logits that `peft` computes with each.

usage: python peft.py    (torch 2.15, transformers 5.24, peft 0.21, safetensors; after gen.py)

NAME/adapter_config.json, adapter_model.safetensors   as `save_pretrained` writes them; `base_model_name_or_path` is the base's name
NAME/logits.safetensors                               `ids` (T) and `logits` (T, V), computed in float32 with the adapter, not merged
"""

import json
import shutil
import sys
from pathlib import Path

# This file has the same name as the package.
sys.path.pop(0)

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
OUT = HERE / "peft"

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "lora": ("llama3", dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"])),
    "rslora": ("mistral", dict(r=4, lora_alpha=8, use_rslora=True, target_modules=ALL)),
    "dora": ("qwen3", dict(r=2, lora_alpha=4, use_dora=True, target_modules=ALL)),
    "patterns": ("llama", dict(r=2, lora_alpha=4, target_modules=ALL,
                               rank_pattern={"q_proj": 5, "layers.1.mlp.down_proj": 3},
                               alpha_pattern={r"layers\.0\.self_attn\.[qk]_proj": 9, "up_proj": 1})),
    "saved": ("llama3", dict(r=2, lora_alpha=2, target_modules=["o_proj"], modules_to_save=["lm_head", "embed_tokens"])),
    "saved-tied": ("qwen2", dict(r=2, lora_alpha=2, target_modules=["k_proj"], modules_to_save=["embed_tokens"])),
    "saved-norm": ("llama", dict(r=2, lora_alpha=2, target_modules=["v_proj"], modules_to_save=["norm", "post_attention_layernorm"])),
    "bias": ("qwen2", dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], bias="all")),
    "lora-bias": ("qwen2", dict(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj"], lora_bias=True)),
    "head": ("llama", dict(r=2, lora_alpha=4, target_modules=["lm_head", "gate_proj"])),
    "embedding": ("llama3", dict(r=2, lora_alpha=4, target_modules=["embed_tokens", "q_proj"])),
    "embedding-tied": ("llama", dict(r=2, lora_alpha=4, target_modules=["embed_tokens"])),
    "resized": ("llama3", dict(r=2, lora_alpha=4, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])),
}


def main():
    for number, (name, (base, settings)) in enumerate(CASES.items()):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_pretrained(HERE / base, dtype=torch.float32)
        ids = torch.randint(0, 300, (1, 12))
        if name == "resized":
            model.resize_token_embeddings(303)
            ids[0, 5] = 302
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
        # An adapter that starts as the identity would show nothing.
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter += 0.2 * torch.randn_like(parameter)
        out = OUT / name
        shutil.rmtree(out, ignore_errors=True)
        model.save_pretrained(out)
        (out / "README.md").unlink(missing_ok=True)
        config = json.loads((out / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = base
        (out / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        # What is loaded again counts: a tied head is not saved.
        again = AutoModelForCausalLM.from_pretrained(HERE / base, dtype=torch.float32)
        if name == "resized":
            again.resize_token_embeddings(303)
        again = PeftModel.from_pretrained(again, out).eval()
        with torch.no_grad():
            logits = again(input_ids=ids).logits[0]
        save_file({"ids": ids[0].clone(), "logits": logits.contiguous()}, out / "logits.safetensors")


main()
