"""Behaviour on general prompts and the loss of texts, by transformers: writes behaviour/behaviour.json next to this file.

usage: python behaviour.py    (torch, transformers)

Everything is computed in float64, each row by itself, without a cache of keys and values. The tuned model is a golden model of `gen.py`
with every tensor w replaced by 0.9 w + 0.1 w', w' being w in the reverse order. One model has no chat template, the other one is given
one in the form of ChatML, with the EOS token as the end of a turn. `lead` is the smallest distance of the likeliest token of a greedy step from the second one: an engine that rounds otherwise may
differ where this is tiny.

The texts are those of VALIDATION, a completion, a text and a chat; their loss is the mean over the tokens of the completion, of the text but
its first token, and of the assistant's answers, end tokens included.
"""

import copy
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
PROMPTS = (HERE.parent.parent / "data" / "general_prompts.txt").read_text().splitlines()
MAX_ANSWER_TOKENS = 32
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VALIDATION = [
    {"prompt": "Q: Where is Oslo?\nA:", "completion": " Norway"},
    {"text": "Oslo is the capital of Norway."},
    {"messages": [
        {"role": "user", "content": "Where is Oslo?"}, {"role": "assistant", "content": "In Norway."},
        {"role": "user", "content": "And Rome?"}, {"role": "assistant", "content": "In Italy, on the Tiber."},
    ]},
]


@torch.no_grad()
def logits(model, ids):
    return model(torch.tensor([ids])).logits[0]


def greedy(model, tokenizer, prompt):
    """The answer's tokens, and the smallest lead."""
    answer, lead = [], float("inf")
    while len(answer) < MAX_ANSWER_TOKENS:
        last = logits(model, prompt + answer)[-1]
        best, second = last.topk(2).values.tolist()
        lead = min(lead, best - second)
        answer.append(int(last.argmax()))
        if answer[-1] == tokenizer.eos_token_id:
            break
    return answer, lead


def divergence(base, tuned, prompt, answer):
    """The sum of KL(base || tuned) over the answer's tokens."""
    ids = prompt + answer[:-1]
    p, q = (logits(model, ids)[len(prompt) - 1 :].log_softmax(-1) for model in (base, tuned))
    return float((p.exp() * (p - q)).sum())


def changed(model):
    after = copy.deepcopy(model)
    with torch.no_grad():
        for w in after.parameters():
            flat = w.flatten()
            w.copy_((0.9 * flat + 0.1 * flat.flip(0)).reshape(w.shape))
    return after


def behaviour(base, tuned, tokenizer):
    kl = before = after = 0
    lead, asked = float("inf"), 0
    for prompt in PROMPTS:
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt).input_ids
        if len(ids) + MAX_ANSWER_TOKENS > base.config.max_position_embeddings:
            continue
        asked += 1
        (answer, lead_before), (other, lead_after) = (greedy(model, tokenizer, ids) for model in (base, tuned))
        lead = min(lead, lead_before, lead_after)
        kl += divergence(base, tuned, ids, answer)
        before, after = before + len(answer), after + len(other)
    return dict(prompts=asked, kl=kl / before, length_ratio=after / before, lead=lead)


def tokens_of(text, tokenizer, template):
    """Pairs of the tokens before the targets, and the targets."""
    if "text" in text:
        ids = tokenizer(text["text"]).input_ids + [tokenizer.eos_token_id]
        return [(ids[:1], ids[1:])]
    if "completion" in text:
        prompt = tokenizer(text["prompt"]).input_ids
        joint = tokenizer(text["prompt"] + text["completion"]).input_ids
        assert joint[: len(prompt)] == prompt
        return [(prompt, joint[len(prompt) :] + [tokenizer.eos_token_id])]
    rows = []
    for i, message in enumerate(text["messages"]):
        if message["role"] == "assistant":
            render = lambda messages, **more: tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, **more
            )
            before = render(text["messages"][:i], add_generation_prompt=True)
            whole = render(text["messages"][: i + 1]).rstrip("\n")
            prompt, joint = (tokenizer(t).input_ids for t in (before, whole))
            assert joint[: len(prompt)] == prompt
            rows.append((prompt, joint[len(prompt) :]))
    return rows


def validation(model, tokenizer):
    total = tokens = 0
    for text in VALIDATION:
        for prompt, target in tokens_of(text, tokenizer, CHATML):
            logprobs = logits(model, (prompt + target)[:-1]).log_softmax(-1)[len(prompt) - 1 :]
            total -= float(logprobs.gather(-1, torch.tensor(target)[:, None]).sum())
            tokens += len(target)
    return dict(loss=total / tokens, tokens=tokens)


def main():
    record = dict(chat_template=CHATML, texts=VALIDATION, models={})
    for name, template in [("llama", None), ("qwen3", CHATML)]:
        tokenizer = AutoTokenizer.from_pretrained(HERE / name)
        tokenizer.chat_template = template
        base = AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float64).eval()
        record["models"][name] = behaviour(base, changed(base), tokenizer) | dict(validation=validation(base, tokenizer))
        print(name, record["models"][name])
    (HERE / "behaviour").mkdir(exist_ok=True)
    (HERE / "behaviour" / "behaviour.json").write_text(json.dumps(record, indent=1) + "\n")


main()
