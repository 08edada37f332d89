"""Greedy answers of llama.cpp to a GGUF file, and the log-probabilities of their tokens.

usage: python load_gguf.py MODEL.gguf PROMPTS.jsonl [ADAPTER.gguf]    (xllamacpp 2026.10, llama.cpp as packaged for Python)

PROMPTS.jsonl has a `{"prompt"}` a line, as `unforget ask --prompts`; a `{"prompt", "answer", "tokens": [[id, logprob]]}` a line on stdout.
"""

import json
import sys

import xllamacpp as xlc

params = xlc.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 512
params.warmup = False
params.n_parallel = 1
if len(sys.argv) > 3:
    adapter = xlc.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = sys.argv[3], 1.0
    params.lora_adapters = [adapter]
server = xlc.Server(params)
for line in open(sys.argv[2]):
    prompt = json.loads(line)["prompt"]
    told = server.handle_completions({"prompt": prompt, "max_tokens": 8, "temperature": 0, "logprobs": 1, "cache_prompt": False})
    choice = told["choices"][0]
    tokens = [[t["id"], t["logprob"]] for t in choice["logprobs"]["content"]]
    print(json.dumps({"prompt": prompt, "answer": choice["text"], "tokens": tokens}), flush=True)
