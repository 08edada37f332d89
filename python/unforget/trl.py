"""Measure forgetting while `transformers` or TRL trains a model.

    from unforget.trl import ForgettingCallback

    forgetting = ForgettingCallback("known.tsv")
    trainer = SFTTrainer(model, ..., callbacks=[forgetting])
    trainer.train()
    forgetting.probes[-1].forgotten

The program alone decides whether an answer is correct. At each probe the model is saved to a scratch directory and
audited by the program. This is slower than evaluating it in place, but the results are those of `unforget audit`.
"""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ._api import Facts, Match, Model, audit
from ._errors import Interrupted, UnforgetError

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError("unforget.trl needs transformers: pip install 'unforget[trl]'") from error

if TYPE_CHECKING:
    from ._results import Audit, AuditedFact

# Maximum number of forgotten facts named in a line.
MAX_NAMED = 3


@dataclass(frozen=True)
class Probe:
    """The facts that are still known at a step of the training.

    A fact is known when the greedy answer is correct under every prompt (HighlyKnown). `num_known` counts the facts
    known before training, `num_retained` those of them still known, and `num_forgotten` the others. `forgotten` lists
    the latter with the model's current answers.
    """

    epoch: float
    step: int
    num_known: int
    num_retained: int
    num_forgotten: int
    seconds: float
    forgotten: tuple[AuditedFact, ...] = field(repr=False)

    def __str__(self) -> str:
        """One line, for a log."""
        line = f"epoch {self.epoch:.4g}, step {self.step}: forgot {self.num_forgotten} of {self.num_known} known facts"
        named = [f"{fact.subject} ({fact.object}; now {fact.answers[0]!r})" for fact in self.forgotten[:MAX_NAMED]]
        if self.num_forgotten > MAX_NAMED:
            named.append(f"{self.num_forgotten - MAX_NAMED} more")
        return f"{line}: {', '.join(named)}" if named else line


class ForgettingCallback(TrainerCallback):  # type: ignore[misc]
    """Evaluates the facts known before training again: after every epoch or every few steps, and at the end.

    Logs `forgetting/retained` and `forgetting/forgotten` (counts) to `trainer.state.log_history`, and prints a line
    such as `forgot 3 of 120 known facts: ...`. With `attach(trainer)` in place of `callbacks=[...]`, the numbers also
    reach the trainer's loggers (Weights & Biases, TensorBoard).

    Args:
        facts: files, `pack:world`, or rows. All of them are evaluated at each probe.
        every: `"epoch"`, or a number of optimizer steps.
        base: the model that defines the known facts, instead of the model at the start of training; for training that
            continues from a checkpoint.
        tokenizer: a fast tokenizer, if the trainer has none.
        num_prompts: number of few-shot prompts per fact.
        shots: examples per prompt; 0 uses the plain prompt, `Q: ...` and `A:` on two lines.
        match: `"contains"` for models that answer in sentences.
        chat: use the model's chat template.
        full_answers: generate wrong answers up to the end of their line; slower.
        seed: of the prompts.
        threads: of the program; all by default.
        scratch: directory for the model saved at each probe, if the system's temporary directory is too small.
        quiet: print nothing.

    The model is saved with `save_pretrained`. A model with PEFT adapters is copied and the copy merged, which needs the
    memory of a second model. Weights sharded over several processes (FSDP, DeepSpeed ZeRO-3) are not supported.

    """

    def __init__(
        self,
        facts: Facts,
        *,
        every: int | Literal["epoch"] = "epoch",
        base: Model | None = None,
        tokenizer: Any = None,
        num_prompts: int = 3,
        shots: int = 3,
        match: Match = "exact",
        chat: bool = False,
        full_answers: bool = False,
        seed: int = 0,
        threads: int | None = None,
        scratch: str | None = None,
        quiet: bool = False,
    ) -> None:
        if every != "epoch" and (not isinstance(every, int) or every < 1):
            raise ValueError("every is 'epoch' or a number of steps")
        self.facts = facts
        self.every = every
        self.base = base
        self.tokenizer = tokenizer
        self.scratch = scratch
        self.quiet = quiet
        self.probes: list[Probe] = []
        self.before: Audit | None = None
        self._trainer: Any = None
        self._audit_options: dict[str, Any] = {
            "num_prompts": num_prompts,
            "shots": shots,
            "samples": 1,
            "match": match,
            "chat": chat,
            "full_answers": full_answers,
            "seed": seed,
            "threads": threads,
            "quiet": True,
        }

    def attach(self, trainer: Any) -> ForgettingCallback:
        """Add this callback to `trainer`, and log through it."""
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Audit the model before training."""
        if not state.is_world_process_zero:
            return
        self.probes.clear()
        if self.base is not None:
            self.before = audit(self.base, self.facts, **self._audit_options)
        else:
            self.before = self._audit(**kwargs)
        num_known = sum(map(_is_known, self.before.facts))
        self._print(f"knows {num_known} of {self.before.overall.facts} facts before training")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Probe every `every` steps."""
        if self.every != "epoch" and state.global_step % self.every == 0:
            self._probe(state, **kwargs)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Probe after an epoch."""
        if self.every == "epoch":
            self._probe(state, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Probe the final model, unless the last probe was at this step."""
        if not self.probes or self.probes[-1].step != state.global_step:
            self._probe(state, **kwargs)

    def _probe(self, state: Any, **kwargs: Any) -> None:
        if self.before is None:
            return
        started = time.monotonic()
        try:
            now = self._audit(**kwargs)
        except Interrupted:
            raise
        except (UnforgetError, OSError) as error:
            # A failed probe, such as on a full disk, must not end the training.
            warnings.warn(f"forgetting was not measured at step {state.global_step}: {error}", stacklevel=2)
            return
        pairs = [(before, after) for before, after in zip(self.before.facts, now.facts) if _is_known(before)]
        forgotten = tuple(after for _, after in pairs if not _is_known(after))
        probe = Probe(
            epoch=state.epoch or 0.0,
            step=state.global_step,
            num_known=len(pairs),
            num_retained=len(pairs) - len(forgotten),
            num_forgotten=len(forgotten),
            seconds=time.monotonic() - started,
            forgotten=forgotten,
        )
        self.probes.append(probe)
        logs = {"forgetting/retained": probe.num_retained, "forgetting/forgotten": probe.num_forgotten}
        if self._trainer is None:
            state.log_history.append({**logs, "epoch": state.epoch, "step": state.global_step})
        else:
            self._trainer.log(logs)
        self._print(str(probe))

    def _audit(self, *, model: Any, processing_class: Any = None, tokenizer: Any = None, **_: Any) -> Audit:
        """Save the current model and audit it with the program."""
        tokenizer = self.tokenizer or processing_class or tokenizer
        # A multimodal processor contains a tokenizer.
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if tokenizer is None:
            raise ValueError("the trainer has no tokenizer: give ForgettingCallback(tokenizer=...)")
        with tempfile.TemporaryDirectory(prefix="unforget-", dir=self.scratch) as scratch:
            saved = Path(scratch, "model")
            _unwrap(model).save_pretrained(saved)
            tokenizer.save_pretrained(saved)
            # A temporary cache: the audit of an intermediate model is never reused.
            return audit(saved, self.facts, env={"UNFORGET_CACHE": scratch}, **self._audit_options)

    def _print(self, line: str) -> None:
        if not self.quiet:
            print(f"forgetting: {line}", flush=True)  # noqa: T201


def _is_known(fact: AuditedFact) -> bool:
    return fact.label == "HighlyKnown"


def _unwrap(model: Any) -> Any:
    """The model without torch.compile, and with PEFT adapters merged (in a copy)."""
    model = getattr(model, "_orig_mod", model)
    return copy.deepcopy(model).merge_and_unload() if hasattr(model, "merge_and_unload") else model
