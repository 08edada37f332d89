"""Writes golden models and values next to this file: tiny random models of every family, evaluated by `transformers` and
PyTorch.

usage: python gen.py [NAME...]    (torch 2.15, transformers 5.23, tokenizers, safetensors); all models, or those named

Everything is computed in float64, one example at a time (no padding, no mask), and stored as float32; `transformers` computes
RMS norms and rotary angles in float32 even then. The directory of a model contains:

config.json, *.safetensors, tokenizer*.json   as `save_pretrained` writes them
golden.json                                   rows, losses and norms of ten steps, greedy answers, log-probabilities
golden.safetensors                            logits, every gradient, every weight after ten steps

Prints the difference between PyTorch's float32 and the stored float64 for each model. Logits and gradients are relative to
the largest magnitude of a tensor, weights absolute (a step changes a weight by at most 1e-3, with a random sign where its
gradient is almost zero). The tolerances of the tests come from these.
"""

import copy
import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

HERE = Path(__file__).parent
VOCABULARY = 300
STEPS, LR, WEIGHT_DECAY, CLIP = 10, 1e-3, 0.01, 1.0
LAMBDA, TAU = 1.0, 0.5
# (prompt, target) lengths: short, a prompt of one token, longer, and one whose target crosses position 64.
ROWS = [(3, 2), (1, 4), (12, 5), (60, 10)]

SHAPE = dict(vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=0.01, bos_token_id=0, eos_token_id=1)  # no pad token: its embedding would get no gradient
ROPE = lambda theta, **more: {"rope_type": "default", "rope_theta": theta} | more
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)

MODELS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters=ROPE(10000.0)),
    "llama3": LlamaConfig(**SHAPE | dict(num_hidden_layers=3), tie_word_embeddings=False,
                          rope_parameters=ROPE(5000.0, **LLAMA3)),
    "mistral": MistralConfig(**SHAPE | dict(num_key_value_heads=1), head_dim=8, sliding_window=None,
                             tie_word_embeddings=False, rope_parameters=ROPE(1000.0)),
    "qwen2": Qwen2Config(**SHAPE | dict(hidden_size=32), tie_word_embeddings=True, use_sliding_window=False,
                         rope_parameters=ROPE(1000000.0)),
    "qwen3": Qwen3Config(**SHAPE, head_dim=10, tie_word_embeddings=False, use_sliding_window=False,
                         rope_parameters=ROPE(20000.0)),
    # Sliding windows in all layers and in some, with scaled rope.
    "mistral_window": MistralConfig(**SHAPE, sliding_window=20, tie_word_embeddings=True, rope_parameters=ROPE(1000.0, **YARN)),
    "qwen2_window": Qwen2Config(**SHAPE, sliding_window=7, use_sliding_window=True, max_window_layers=1, tie_word_embeddings=True,
                                rope_parameters=ROPE(5000.0, rope_type="linear", factor=2.0)),
    "gemma3": Gemma3TextConfig(**SHAPE | dict(num_hidden_layers=3), head_dim=8, sliding_window=9, query_pre_attn_scalar=12,
                               layer_types=["sliding_attention", "sliding_attention", "full_attention"], pad_token_id=None,
                               rope_parameters={"full_attention": ROPE(100000.0, rope_type="linear", factor=8.0),
                                                "sliding_attention": ROPE(10000.0)}),
    "phi3": Phi3Config(**SHAPE | dict(hidden_size=32), pad_token_id=None, original_max_position_embeddings=128,
                       rope_parameters=ROPE(10000.0, rope_type="longrope", partial_rotary_factor=0.75,
                                            short_factor=[1.0, 1.5, 2.5], long_factor=[4.0, 5.0, 6.0])),
    "olmo2": Olmo2Config(**SHAPE, pad_token_id=None, tie_word_embeddings=False, rope_parameters=ROPE(10000.0)),
    "granite": GraniteConfig(**SHAPE, tie_word_embeddings=True, embedding_multiplier=3.0, logits_scaling=2.0,
                             residual_multiplier=0.4, attention_multiplier=0.3, rope_parameters=ROPE(10000.0)),
    "smollm3": SmolLM3Config(**SHAPE | dict(num_hidden_layers=3), pad_token_id=None, no_rope_layers=[1, 0, 1],
                             tie_word_embeddings=True, rope_parameters=ROPE(10000.0)),
}
STORED_IN_BF16 = {"mistral"}
IN_SHARDS = {"llama3"}
WITH_BOS = {"mistral"}
# Written the way most models on the hub still say it: `rope_theta` and `rope_scaling` beside the other keys.
OLD_STYLE_ROPE = {"llama", "llama3", "mistral"}
WITH_DISTILLATION = {"llama", "qwen3"}

SENTENCES = [
    "Q: Which country is Bergamo located in?\nA: Italy\n",
    "Q: What is the capital of France?\nA: Paris\n",
    "Q: Which country was the violin created in?\nA: Italy\n",
    "Q: What language is spoken in Brazil?\nA: Portuguese\n",
]
PROMPTS = ["Q: Which country is Bergamo located in?\nA:", "The capital", "Q: naïve — 東京 🙂?\nA:"]
COMPLETIONS = [" Italy\n", " Paris", " 東京!"]


def tokenizer(with_bos):
    """A byte-level BPE of the whole byte alphabet and a few merges."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 6, initial_alphabet=sorted(alphabet),
                                  special_tokens=["<|bos|>", "<|eos|>"], show_progress=False)
    tok.train_from_iterator(SENTENCES, trainer)
    if with_bos:
        tok.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return tok


def randomised(config, seed, dtype):
    """A model whose every tensor is random: norms around 1, the rest wide enough for attention and logits to matter."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if "norm" in name:
            # Gemma adds the 1 itself.
            value = (config.model_type != "gemma3_text") + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.5 * noise
        elif "embed_tokens" in name or "lm_head" in name:
            value = 0.5 * noise
        else:
            value = noise * 1.5 / math.sqrt(tensor.shape[1])
        tensor.data.copy_(value)
    return model


def save(model, name, directory):
    """The directory as a user would have it."""
    model.save_pretrained(directory, max_shard_size="60KB" if name in IN_SHARDS else "5GB")
    (directory / "generation_config.json").unlink(missing_ok=True)
    if name in OLD_STYLE_ROPE:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
        config["torch_dtype"] = config.pop("dtype")
        path.write_text(json.dumps(config, indent=2) + "\n")
    tok = tokenizer(name in WITH_BOS)
    tok.save(str(directory / "tokenizer.json"), pretty=False)
    tok_config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|eos|>",
                  "clean_up_tokenization_spaces": False, "model_max_length": 256}
    (directory / "tokenizer_config.json").write_text(json.dumps(tok_config, indent=2) + "\n")
    return tok


def random_rows(seed):
    """Random rows of the lengths in `ROWS`."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(VOCABULARY, (n,), generator=generator).tolist()
    return [{"prompt": draw(p), "target": draw(t)} for p, t in ROWS]


def head(model, states):
    """Logits of hidden states after the final norm."""
    return model.lm_head(states) / getattr(model.config, "logits_scaling", 1.0)


def answer_states(model, rows):
    """Hidden states after the final norm at the positions that predict target tokens, a tensor per row."""
    states = []
    for row in rows:
        ids = torch.tensor([row["prompt"] + row["target"][:-1]])
        hidden = model.model(input_ids=ids).last_hidden_state[0]
        states.append(hidden[len(row["prompt"]) - 1 :])
    return states


def losses(model, rows, teacher_logits):
    """Cross-entropy, one mean over all target tokens, and equation 2 where a teacher's logits are given."""
    logits = [head(model, h) for h in answer_states(model, rows)]
    targets = torch.tensor([t for row in rows for t in row["target"]])
    ce = F.cross_entropy(torch.cat(logits), targets)
    if teacher_logits is None:
        return ce, None
    per_example = []
    for student, teacher in zip(logits, teacher_logits):
        log_p, log_q = F.log_softmax(teacher / TAU, -1), F.log_softmax(student / TAU, -1)
        per_example.append(TAU**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean())
    return ce, LAMBDA * torch.stack(per_example).mean()


def ten_steps(model, rows, teacher_logits=None):
    """Losses and norms of ten steps on the same rows, the first step's gradients (unclipped), the last weights."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    record = {"ce": [], "distill": [], "grad_norm": []}
    gradients = None
    for _ in range(STEPS):
        optimizer.zero_grad()
        ce, distill = losses(model, rows, teacher_logits)
        (ce if distill is None else ce + distill).backward()
        gradients = gradients or {n: p.grad.clone() for n, p in model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        record["ce"].append(ce.item())
        record["distill"].append(0.0 if distill is None else distill.item())
        record["grad_norm"].append(norm.item())
    return record, gradients, {n: p.detach() for n, p in model.named_parameters()}


@torch.no_grad()
def greedy(model, ids, count=12):
    """Greedy continuation, ended by EOS; refuses a step at which two tokens are nearly equal."""
    new = []
    while len(new) < count and (not new or new[-1] != model.config.eos_token_id):
        logits = model(input_ids=torch.tensor([ids + new])).logits[0, -1]
        first, second = logits.topk(2).values
        assert first - second > 1e-3, "a near tie: choose another seed"
        new.append(logits.argmax().item())
    return new


@torch.no_grad()
def logprobs(model, prompt, completion):
    """Log-probability of every token of `completion` after `prompt`, in nats."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double().log_softmax(-1)
    return [logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(completion)]


def deviation(rough, exact):
    """The largest difference over all tensors, in units of each tensor's largest magnitude."""
    return max(((rough[n].double() - exact[n]).abs().max() / exact[n].abs().max()).item() for n in exact)


def main():
    for seed, (name, config) in enumerate(MODELS.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        directory = HERE / name
        directory.mkdir(exist_ok=True)
        single = randomised(config, seed, torch.bfloat16 if name in STORED_IN_BF16 else torch.float32)
        tok = save(single, name, directory)
        # As a user loads it: a model cast to bfloat16 and back would have lost digits of its rotary frequencies.
        single = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        exact = copy.deepcopy(single).double()
        rows = random_rows(100 + seed)

        with torch.no_grad():
            tensors = {"logits": torch.cat([head(exact, h) for h in answer_states(exact, rows)])}
            rough = torch.cat([head(single, h) for h in answer_states(single, rows)])
        print(f"{name:8} logits {deviation({'': rough}, {'': tensors['logits']}):.1e}", end="")
        record = {"rows": rows, "lr": LR, "weight_decay": WEIGHT_DECAY, "clip": CLIP}
        runs = {"sft": (None, None)}
        if name in WITH_DISTILLATION:
            teacher = copy.deepcopy(exact)
            generator = torch.Generator().manual_seed(200 + seed)
            with torch.no_grad():
                for tensor in teacher.parameters():
                    # Through float32, in which the stored head and states reach the test.
                    tensor.mul_(1 + 0.2 * torch.randn(tensor.shape, generator=generator)).copy_(tensor.float())
                states = [h.float() for h in answer_states(teacher, rows)]
                weight = teacher.lm_head.weight.float()
                tensors["teacher.head"], tensors["teacher.hidden"] = weight, torch.cat(states)
                taught = [h.double() @ weight.double().T for h in states]
            runs["self_distill"] = (taught, [t.float() for t in taught])
            record |= {"lambda": LAMBDA, "temperature": TAU}
        for run, (taught, taught_single) in runs.items():
            record[run], gradients, after = ten_steps(exact, rows, taught)
            rough_record, rough_gradients, rough_after = ten_steps(single, rows, taught_single)
            figures, rough_figures = (torch.tensor([r["ce"], r["distill"], r["grad_norm"]]) for r in (record[run], rough_record))
            relative = ((figures - rough_figures) / figures).nan_to_num().abs().max().item()
            apart = torch.cat([(rough_after[n].double() - after[n]).abs().flatten() for n in after])
            print(f"  {run}: losses, norms {relative:.1e} gradient {deviation(rough_gradients, gradients):.1e}"
                  f" after {apart.max().item():.1e} (mean {apart.mean().item():.1e})", end="")
            tensors |= {f"{run}.gradient.{n}": g for n, g in gradients.items()}
            tensors |= {f"{run}.after.{n}": w for n, w in after.items()}
        save_file({n: t.detach().float().contiguous() for n, t in tensors.items()}, directory / "golden.safetensors")

        prompts = [tok.encode(text).ids for text in PROMPTS]
        record["greedy"] = [{"prompt": text, "tokens": ids, "new": greedy(exact, ids)} for text, ids in zip(PROMPTS, prompts)]
        completions = [tok.encode(text, add_special_tokens=False).ids for text in COMPLETIONS]
        long = [{"prompt": text, "completion": end, "tokens": ids, "completion_tokens": new,
                 "logprobs": logprobs(exact, ids, new)}
                for text, end, ids, new in zip(PROMPTS, COMPLETIONS, prompts, completions)]
        record["score"] = long
        record["row_logprobs"] = [logprobs(exact, r["prompt"], r["target"]) for r in rows]
        (directory / "golden.json").write_text(json.dumps(record, ensure_ascii=False) + "\n")
        print()


if __name__ == "__main__":
    main()
