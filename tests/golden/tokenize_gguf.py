"""The token ids that llama.cpp gives texts.

usage: python tokenize_gguf.py MODEL.gguf TEXTS.jsonl    (xllamacpp 2026.10, llama.cpp as packaged for Python)

TEXTS.jsonl has a text (a JSON string) a line; a list of ids a line on stdout. No special tokens are added in front, and those that
stand in a text are read as such, as `tokenizers` does with add_special_tokens=False.
"""

import http.client
import json
import sys
import urllib.parse

import xllamacpp as xlc

params = xlc.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 64
params.warmup = False
params.n_parallel = 1
server = xlc.Server(params)
address = urllib.parse.urlparse(server.listening_address)
connection = http.client.HTTPConnection(address.hostname, address.port)
for line in open(sys.argv[2], encoding="utf-8"):
    body = json.dumps({"content": json.loads(line), "add_special": False, "parse_special": True})
    connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
    print(json.dumps(json.loads(connection.getresponse().read())["tokens"]), flush=False)
sys.stdout.flush()
