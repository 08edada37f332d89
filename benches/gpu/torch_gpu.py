"""The same products and training steps as `benches/gpu/main.rs`, in PyTorch on the same card: JSON on stdout.

Eager and compiled, f32 with TF32 off and on, fused AdamW. Attention is `scaled_dot_product_attention` over padded rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = {
    "SmolLM2-135M": (576, 1536, 30, 9, 3, 64, 49_152),
    "0.5 B": (896, 4864, 24, 14, 2, 64, 151_936),
    "1.5 B": (1536, 8960, 28, 12, 2, 128, 151_936),
}
SMALL = {"tiny": (64, 128, 2, 4, 2, 16, 500)}
PRODUCTS = [(32, 3072, 576), (1024, 3072, 576), (1024, 9728, 896), (1024, 17_920, 1536), (4096, 17_920, 1536)]
TARGETS = 4


class Block(nn.Module):
    """A layer of a llama."""

    def __init__(self, d: int, f: int, heads: int, groups: int, k: int) -> None:
        super().__init__()
        self.heads, self.groups, self.k = heads, groups, k
        self.norm, self.post = nn.RMSNorm(d, 1e-5), nn.RMSNorm(d, 1e-5)
        self.qkv = nn.Linear(d, (heads + 2 * groups) * k, bias=False)
        self.o = nn.Linear(heads * k, d, bias=False)
        self.gate_up, self.down = nn.Linear(d, 2 * f, bias=False), nn.Linear(f, d, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        rows, tokens, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(rows, tokens, -1, self.k).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.groups, self.groups], dim=1)
        q, k = (y * cos + torch.cat([-y[..., self.k // 2 :], y[..., : self.k // 2]], -1) * sin for y in (q, k))
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(o.transpose(1, 2).reshape(rows, tokens, -1))
        gate, up = self.gate_up(self.post(x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * up)


class Llama(nn.Module):
    """The decoder with a tied head, at the last positions of each row."""

    def __init__(self, d: int, f: int, layers: int, heads: int, groups: int, k: int, v: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(v, d)
        self.blocks = nn.ModuleList(Block(d, f, heads, groups, k) for _ in range(layers))
        self.norm = nn.RMSNorm(d, 1e-5)
        self.k = k

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        half = torch.arange(0, self.k, 2, device=tokens.device) / self.k
        angles = positions[:, None] / 1e5**half
        cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x[:, -TARGETS:]) @ self.embed.weight.T


def median(run: Callable[[], object], repeats: int = 10) -> float:
    """Seconds of `run`, after two runs that warm up."""
    seconds = []
    for i in range(repeats + 2):
        started = time.perf_counter()
        run()
        synchronize()
        if i >= 2:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def products(device: str, *, small: bool) -> list[dict[str, Any]]:
    rows = []
    for m, n, k in [(32, 64, 64)] if small else PRODUCTS:
        x, w, y = (torch.zeros(shape, device=device) for shape in ((m, k), (n, k), (m, n)))
        runs = {"NT": lambda x=x, w=w: x @ w.T, "NN": lambda y=y, w=w: y @ w, "TN": lambda x=x, y=y: y.T @ x}
        rows += [
            {"form": form, "shape": [m, n, k], "gflops": 2 * m * n * k / median(run) / 1e9}
            for form, run in runs.items()
        ]
    return rows


def step(model: nn.Module, vocab: int, rows: int, tokens: int, device: str, *, distills: bool) -> dict[str, Any]:
    fused = device == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=fused)
    ids = torch.randint(vocab, (rows, tokens), device=device)
    targets = torch.randint(vocab, (rows * TARGETS,), device=device)
    teacher = torch.randn(rows * TARGETS, vocab, device=device) if distills else None

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(ids).flatten(0, 1)
        loss = functional.cross_entropy(logits, targets)
        if teacher is not None:
            soft = functional.log_softmax(teacher / 0.5, -1)
            loss = loss + 0.25 * functional.kl_div(
                functional.log_softmax(logits / 0.5, -1), soft, log_target=True, reduction="batchmean"
            )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return {"rows": rows, "tokens": tokens, "distills": distills, "seconds": median(run)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="tiny shapes, on the CPU where there is no card")
    small = parser.parse_args().small
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not small:
        sys.exit("no CUDA device")
    workloads = [(4, 8)] if small else [(32, 24), (2, 1024)]
    found = []
    for tf32 in (False,) if small else (False, True):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        for compiled in (False,) if small else (False, True):
            models = []
            for name, shape in (SMALL if small else SHAPES).items():
                torch.manual_seed(0)
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                model: nn.Module = Llama(*shape).to(device)
                if compiled:
                    model = torch.compile(model)
                steps = [
                    step(model, shape[-1], rows, tokens, device, distills=distills)
                    for rows, tokens in workloads
                    for distills in (False, True)
                ]
                peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
                models.append({"model": name, "steps": steps, "peak_memory_bytes": peak})
                del model
            found.append(
                {"tf32": tf32, "compiled": compiled, "products": products(device, small=small), "models": models}
            )
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    json.dump({"program": f"PyTorch {torch.__version__}", "device": name, "settings": found}, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
