"""Greedy and sampled answers with PyTorch: tuned, and as in an ordinary script."""

from collections import defaultdict

import torch
from transformers import DynamicCache


@torch.no_grad()
def first_lines(model, tokenizer, prompts, prefix="", max_new_tokens=8, temperature=0.0, top_k=40, batch_size=128):
    """The first line of each answer, decoded in batches of equal length after a prefix that is encoded once.

    A row leaves its batch at the first line break or end token. The tokenizer adds special tokens as usual.
    """
    model.eval()
    shared = None
    if prefix:
        ids = torch.tensor([tokenizer(prefix).input_ids])
        shared = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    by_length = defaultdict(list)
    for index, prompt in enumerate(prompts):
        ids = tokenizer(prompt, add_special_tokens=not prefix).input_ids
        by_length[len(ids)].append((index, ids))
    answers = [""] * len(prompts)
    for _, group in sorted(by_length.items()):
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            tokens = _continue(model, tokenizer, [ids for _, ids in part], shared, max_new_tokens, temperature, top_k)
            for (index, _), new in zip(part, tokens):
                answers[index] = tokenizer.decode(new, skip_special_tokens=True).split("\n", 1)[0].strip()
    return answers


@torch.no_grad()
def usual_first_lines(model, tokenizer, prompts, prefix="", max_new_tokens=16, temperature=0.0, top_k=40, batch_size=32):
    """The first line of each answer with `generate` on padded batches, the complete prompt each time."""
    model.eval()
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature else {"do_sample": False}
    answers = []
    for start in range(0, len(prompts), batch_size):
        batch = tokenizer([prefix + prompt for prompt in prompts[start : start + batch_size]], return_tensors="pt", padding=True)
        out = model.generate(**batch, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, **sampling)
        texts = tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        answers += [text.split("\n", 1)[0].strip() for text in texts]
    return answers


def answering(variant):
    """The answer function of variant `best` or `usual`."""
    return {"best": first_lines, "usual": usual_first_lines}[variant]


def _continue(model, tokenizer, rows, shared, max_new_tokens, temperature, top_k):
    """New tokens for `rows` (all of the same length) after the cache `shared`."""
    cache = DynamicCache()
    if shared is not None:
        for index, layer in enumerate(shared.layers):
            keys, values = (x.expand(len(rows), -1, -1, -1) for x in (layer.keys, layer.values))
            cache.update(keys, values, index)
    generated = [[] for _ in rows]
    alive = list(range(len(rows)))
    step = torch.tensor(rows)
    for _ in range(max_new_tokens):
        out = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1]
        if temperature == 0.0:
            chosen = logits.argmax(-1, keepdim=True)
        else:
            best, ids = torch.topk(logits / temperature, top_k)
            chosen = ids.gather(1, torch.multinomial(best.softmax(-1), 1))
        keep = []
        for place, token in enumerate(chosen[:, 0].tolist()):
            row = generated[alive[place]]
            row.append(token)
            if token != tokenizer.eos_token_id and "\n" not in tokenizer.decode(row[-1:]):
                keep.append(place)
        if not keep:
            break
        if len(keep) < len(alive):
            alive = [alive[place] for place in keep]
            cache.batch_select_indices(torch.tensor(keep))
        step = chosen[keep]
    return generated
