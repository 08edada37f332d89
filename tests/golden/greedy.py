"""Writes the answers of `transformers` to 200 questions: smollm2_greedy.json and gemma3_greedy.json.

usage: python -P greedy.py HF_DIR OUT.json    (a model of the registry as `transformers` itself unpacks its GGUF file, f32; -P keeps gguf.py here from hiding the package)

Half of the questions are asked bare, half behind three examples. Each row holds the greedy tokens up to the first line
break (at most 12), the log-probability of each, and by how much the best token led at the closest step: an engine that
rounds otherwise may differ only where this is tiny.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_NEW_TOKENS = 12
COUNTRIES = """Argentina Australia Austria Bangladesh Belgium Brazil Bulgaria Canada Chile China Colombia Croatia Cuba Denmark
Egypt Ethiopia Finland France Germany Ghana Greece Hungary Iceland India Indonesia Iran Iraq Ireland Israel Italy Jamaica
Japan Kenya Malaysia Mexico Morocco Nepal Netherlands Nigeria Norway Pakistan Peru Poland Portugal Romania Russia Spain
Sweden Thailand Turkey""".split()
QUESTIONS = ["What is the capital of {}?", "Which continent is {} in?", "What is the official language of {}?",
             "What is the currency of {}?"]
EXAMPLES = ("Q: What is the capital of South Korea?\nA: Seoul\n"
            "Q: Which continent is Zambia in?\nA: Africa\n"
            "Q: What is the official language of Vietnam?\nA: Vietnamese\n")


@torch.no_grad()
def greedy(model, tokenizer, prompt):
    """One row of the file."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    row = {"prompt": prompt, "prompt_tokens": ids.shape[1], "tokens": [], "logprobs": [], "lead": float("inf")}
    out = model(input_ids=ids, use_cache=True)
    while True:
        logits = out.logits[0, -1].double()
        best, second = logits.topk(2).values.tolist()
        token = logits.argmax().item()
        row["tokens"].append(token)
        row["logprobs"].append(round(logits.log_softmax(-1)[token].item(), 5))
        row["lead"] = min(row["lead"], round(best - second, 5))
        ended = token == tokenizer.eos_token_id or "\n" in tokenizer.decode([token])
        if ended or len(row["tokens"]) == MAX_NEW_TOKENS:
            break
        out = model(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
    row["answer"] = tokenizer.decode(row["tokens"], skip_special_tokens=True).split("\n", 1)[0].strip()
    return row


def main():
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    rows = []
    for template_index, template in enumerate(QUESTIONS):
        for country_index, country in enumerate(COUNTRIES):
            examples = EXAMPLES if (template_index + country_index) % 2 else ""
            rows.append(greedy(model, tokenizer, f"{examples}Q: {template.format(country)}\nA:"))
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")
    print("closest steps:", sorted(row["lead"] for row in rows)[:10])


if __name__ == "__main__":
    main()
