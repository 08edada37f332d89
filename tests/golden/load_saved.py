"""Loads a saved directory with transformers: weights must be bitwise identical to the file, tokens equal those of texts.json."""

import json
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

directory, texts = sys.argv[1:]
model, info = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", output_loading_info=True)
assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
stored = load_file(f"{directory}/model.safetensors")
state = model.state_dict()
if model.config.tie_word_embeddings:
    assert "lm_head.weight" not in stored
    state.pop("lm_head.weight", None)
assert set(state) == set(stored), set(state) ^ set(stored)
for name, tensor in stored.items():
    assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name

tokenizer = AutoTokenizer.from_pretrained(directory)
for text, ids in json.load(open(texts)).items():
    assert tokenizer(text)["input_ids"] == ids, (text, tokenizer(text)["input_ids"], ids)
