"""The parts of a forecast, by PyTorch, transformers and scipy: writes forecast/forecast.json next to this file.

usage: python forecast.py    (torch, transformers, scipy)

Everything is computed in float64, each row by itself, on the models that `gen.py` wrote:

states      per model and fact: the residual stream after half of the layers at the subject's last token, of length 1
heard       per model: what is heard of each fact behind two few-shot prompts (mean hidden state after the final norm, mean
            log-probability of each answer's first token)
rehearsal   log-odds of the held facts after a rehearsal on the numbers of `heard`, written out fact by fact
auc         areas under the ROC curve of scores with ties
"""

import json
import math
import random
from pathlib import Path

import torch
from scipy.stats import mannwhitneyu
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
# (subject, object, question); one subject has multi-byte letters, one is not in its question.
FACTS = [
    ("Bergamo", "Italy", "Which country is Bergamo located in?"),
    ("Lyon", "France", "Which country is Lyon located in?"),
    ("Żyrardów", "Poland", "Which country is Żyrardów located in?"),
    ("東京", "Japan", "Which country is 東京 located in?"),
    ("the eternal city", "Italy", "Which country is Rome located in?"),
    ("Bonn", "Germany", "Which country is Bonn located in?"),
    ("Porto", "Portugal", "Which country is Porto located in?"),
    ("Nice", "France", "Which country is Nice located in?"),
]
NEW = 5
# Few-shot texts; their questions are not facts here.
PREFIXES = [
    "Q: Which country is Pisa located in?\nA: Italy\nQ: Which country is Kiel located in?\nA: Germany\n",
    "Q: Which country is Oslo located in?\nA: Norway\n",
]
# The log-probability of a class whose token counts as the copy.
COUNTED = -1e4
SHARPNESS, EPOCHS, STEP, BATCH, KNOWN_SHARE = 2.0, 10, 0.3, 32, 0.05


def tokens(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def states(model, tokenizer):
    rows = []
    for subject, _, question in FACTS:
        prompt = f"Q: {question}\nA:"
        encoded = tokenizer(prompt, return_offsets_mapping=True)
        last = len(encoded["input_ids"]) - 1
        if subject in question:
            end = prompt.rindex(question) + question.rindex(subject) + len(subject)
            last = max(i for i, (a, b) in enumerate(encoded["offset_mapping"]) if end - len(subject) < b and a < end)
        with torch.no_grad():
            out = model(torch.tensor([encoded["input_ids"]]), output_hidden_states=True)
        h = out.hidden_states[max(model.config.num_hidden_layers // 2, 1)][0, last]
        rows.append((h / h.norm()).tolist())
    return rows


def first_tokens(tokenizer):
    """The first token of each answer after their common prefix, that of each subject in its place, and that prefix."""
    targets = [tokens(tokenizer, f" {answer}\n") for _, answer, _ in FACTS]
    shared = 0
    while all(len(t) > shared + 1 and t[shared] == targets[0][shared] for t in targets):
        shared += 1
    subjects = [tokens(tokenizer, f" {subject}\n")[shared] for subject, _, _ in FACTS]
    return [t[shared] for t in targets], subjects, targets[0][:shared]


def heard(model, tokenizer):
    first, subjects, shared = first_tokens(tokenizer)
    # An answer that begins as its subject is a copy; all copies are the last class, which counts its token alone.
    answers = sorted({a for a, s in zip(first, subjects) if a != s})
    copies = any(a == s for a, s in zip(first, subjects))
    hidden, logprobs = [], []
    for (_, _, question), subject in zip(FACTS, subjects):
        sums = [0, 0]
        for prefix in PREFIXES:
            row = tokenizer(prefix)["input_ids"] + tokens(tokenizer, f"Q: {question}\nA:") + shared
            with torch.no_grad():
                last = model.model(torch.tensor([row])).last_hidden_state[0, -1]
            sums[0] += last / len(PREFIXES)
            told = torch.log_softmax(model.lm_head(last), -1)
            row = torch.cat([told[answers], told[[subject]]]) if copies else told[answers]
            for i, answer in enumerate(answers):
                if copies and answer == subject:
                    row[i] = COUNTED
            sums[1] += row / len(PREFIXES)
        hidden.append(sums[0])
        logprobs.append(sums[1])
    right = [len(answers) if a == s else answers.index(a) for a, s in zip(first, subjects)]
    return torch.stack(hidden), torch.stack(logprobs), right


def softmax(z):
    top = max(z)
    weights = [math.exp(x - top) for x in z]
    return [w / sum(weights) for w in weights]


def rehearse(hidden, logprobs, right, new, trained, asked):
    """`trained`: (fact, weight). A batch is every n-th fact, n being the number of batches."""
    centre = [sum(h[i] for h in hidden[:new]) / new for i in range(len(hidden[0]))]
    about = [[x - m for x, m in zip(h, centre)] for h in hidden]
    norm = [math.sqrt(sum(x * x for x in h)) for h in about]

    def k(a, b):
        if a == b and a in asked:
            return 0.0
        cosine = sum(x * y for x, y in zip(about[a], about[b])) / norm[a] / norm[b]
        return math.exp(SHARPNESS * (cosine - 1))

    coefficients = {fact: [0.0] * len(logprobs[0]) for fact, _ in trained}

    def logits(fact):
        return [z0 + sum(k(fact, u) * coefficients[u][c] for u, _ in trained) for c, z0 in enumerate(logprobs[fact])]

    batches = math.ceil(len(trained) / BATCH)
    for _ in range(EPOCHS):
        for batch in range(batches):
            members = trained[batch::batches]
            before = [logits(fact) for fact, _ in members]
            for (fact, weight), z in zip(members, before):
                for c, p in enumerate(softmax(z)):
                    coefficients[fact][c] += STEP * weight * ((c == right[fact]) - p)
    odds = []
    for fact in asked:
        p = softmax(logits(fact))
        odds.append(math.log(p[right[fact]]) - math.log(sum(x for c, x in enumerate(p) if c != right[fact])))
    return odds


def aucs():
    rng = random.Random(3)
    cases = []
    for n, levels in [(12, 4), (60, 7), (200, 1000)]:
        positive = [rng.random() < 0.3 for _ in range(n)]
        scores = [round(rng.randrange(levels) / levels + 0.2 * p, 6) for p in positive]  # ties survive rounding
        with_, without = ([s for s, p in zip(scores, positive) if p is kind] for kind in (True, False))
        u = mannwhitneyu(with_, without).statistic
        cases.append(dict(scores=scores, positive=positive, auc=u / len(with_) / len(without)))
    return cases


def main():
    record = dict(facts=[dict(zip(["subject", "object", "question"], f)) for f in FACTS], new=NEW, prefixes=PREFIXES, models={})
    for name in ["llama", "qwen3"]:
        tokenizer = AutoTokenizer.from_pretrained(HERE / name)
        model = AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float64).eval()
        hidden, logprobs, right = heard(model, tokenizer)
        hidden, logprobs = hidden.tolist(), logprobs.tolist()
        asked = list(range(NEW, len(FACTS)))
        new = [(fact, 1.0) for fact in range(NEW)]
        stand_ins = new + [(fact, KNOWN_SHARE * NEW / len(asked)) for fact in asked]
        record["models"][name] = dict(
            states=states(model, tokenizer),
            hidden=hidden,
            logprobs=logprobs,
            right=right,
            log_odds_alone=rehearse(hidden, logprobs, right, NEW, new, asked),
            log_odds_stand_ins=rehearse(hidden, logprobs, right, NEW, stand_ins, asked),
        )
    # More facts than a batch, with random features.
    rng = random.Random(5)
    n, d, c, new = 50, 6, 7, 40
    hidden = [[rng.gauss(0.5, 1) for _ in range(d)] for _ in range(n)]
    logprobs = [[math.log(p) for p in softmax([rng.gauss(0, 2) for _ in range(c)])] for _ in range(n)]
    right = [rng.randrange(c) for _ in range(n)]
    trained = [(fact, 1.0) for fact in range(new)] + [(fact, 0.4) for fact in range(new, n)]
    odds = rehearse(hidden, logprobs, right, new, trained, list(range(new, n)))
    record["many"] = dict(hidden=hidden, logprobs=logprobs, right=right, new=new, weight=0.4, log_odds=odds)
    record["auc"] = aucs()
    (HERE / "forecast").mkdir(exist_ok=True)

    def short(x):
        if isinstance(x, float):
            return float(f"{x:.9g}")
        if isinstance(x, list):
            return [short(y) for y in x]
        return {key: short(y) for key, y in x.items()} if isinstance(x, dict) else x

    (HERE / "forecast" / "forecast.json").write_text(json.dumps(short(record), ensure_ascii=False) + "\n")


main()
