"""What a model forgets while `transformers` or TRL trains it.

    from unforget.trl import ForgettingCallback

    forgetting = ForgettingCallback("known.tsv")
    trainer = SFTTrainer(model, ..., callbacks=[forgetting])
    trainer.train()
    forgetting.probes[-1].forgotten

There is one definition of a right answer, the program's. So at each probe the model is saved into a scratch directory
and audited by the program: slower than asking it in place, and the figures are those that `unforget audit` tells.
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

# Forgotten facts that a line names.
NAMED = 3


@dataclass(frozen=True)
class Probe:
    """What was still known at a step of the training.

    A fact is known when the greedy answer is right under every prompt (HighlyKnown). `known` counts the facts that were
    so when training began, `known_right` those of them that are so now, and `lost` the rest, which `forgotten` lists as
    the model answers them now.
    """

    epoch: float
    step: int
    known: int
    known_right: int
    lost: int
    seconds: float
    forgotten: tuple[AuditedFact, ...] = field(repr=False)

    def __str__(self) -> str:
        """One line, for a log."""
        told = f"epoch {self.epoch:.4g}, step {self.step}: forgot {self.lost} of {self.known} facts it knew"
        named = [f"{fact.subject} ({fact.object}; now {fact.answers[0]!r})" for fact in self.forgotten[:NAMED]]
        if self.lost > NAMED:
            named.append(f"{self.lost - NAMED} more")
        return f"{told}: {', '.join(named)}" if named else told


class ForgettingCallback(TrainerCallback):  # type: ignore[misc]
    """Asks what the model knew when training began again: after every epoch or some steps, and at the end.

    Logs `forgetting/known_right` and `forgetting/lost` (counts) into `trainer.state.log_history`, and prints a line
    such as `forgot 3 of 120 facts it knew: ...`. Where the trainer itself is handed over by `attach`, which takes the
    place of `callbacks=[...]`, what it reports to (Weights & Biases, TensorBoard) is told too.

    Args:
        facts: files, `pack:world`, or rows; the whole set is asked each time.
        every: `"epoch"`, or a number of optimiser steps.
        base: a model that says what was known, in the place of the one that training begins with; for a training that
            goes on from a checkpoint.
        tokenizer: where the trainer has none; it must be a fast one.
        runs: few-shot prompts each fact is asked under.
        shots: exemplars in each; 0 asks at the bare prompt, `Q: ...` and `A:` on two lines.
        match: `"contains"` for models that answer in sentences.
        chat: ask through the model's own chat template.
        whole_answers: tell wrong answers to the end of their line; slower.
        seed: of the prompts.
        threads: the program's; all by default.
        scratch: where the model is saved at each probe, if the system's temporary directory has no room for it.
        quiet: print nothing.

    The model is saved by its own `save_pretrained`; one with PEFT adapters is copied and the copy merged, which takes
    the memory of a second model. Weights that are split over several processes (FSDP, DeepSpeed ZeRO-3) are not
    gathered.

    """

    def __init__(
        self,
        facts: Facts,
        *,
        every: int | Literal["epoch"] = "epoch",
        base: Model | None = None,
        tokenizer: Any = None,
        runs: int = 3,
        shots: int = 3,
        match: Match = "exact",
        chat: bool = False,
        whole_answers: bool = False,
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
        self._asking: dict[str, Any] = {
            "runs": runs,
            "shots": shots,
            "samples": 1,
            "match": match,
            "chat": chat,
            "whole_answers": whole_answers,
            "seed": seed,
            "threads": threads,
            "quiet": True,
        }

    def attach(self, trainer: Any) -> ForgettingCallback:
        """Become a callback of `trainer`, and log through it."""
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Find out what the model knows."""
        if not state.is_world_process_zero:
            return
        self.probes.clear()
        if self.base is not None:
            self.before = audit(self.base, self.facts, **self._asking)
        else:
            self.before = self._audit(**kwargs)
        known = self.before.overall
        self._say(f"knows {sum(map(_is_known, self.before.facts))} of {known.facts} facts before training")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Probe after so many steps."""
        if self.every != "epoch" and state.global_step % self.every == 0:
            self._probe(state, **kwargs)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Probe after an epoch."""
        if self.every == "epoch":
            self._probe(state, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Probe what came out, if it was not just done."""
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
            # A full disk is no reason to lose a training of hours.
            warnings.warn(f"forgetting was not measured at step {state.global_step}: {error}", stacklevel=2)
            return
        pairs = [(before, after) for before, after in zip(self.before.facts, now.facts) if _is_known(before)]
        forgotten = tuple(after for _, after in pairs if not _is_known(after))
        probe = Probe(
            epoch=state.epoch or 0.0,
            step=state.global_step,
            known=len(pairs),
            known_right=len(pairs) - len(forgotten),
            lost=len(forgotten),
            seconds=time.monotonic() - started,
            forgotten=forgotten,
        )
        self.probes.append(probe)
        logs = {"forgetting/known_right": probe.known_right, "forgetting/lost": probe.lost}
        if self._trainer is None:
            state.log_history.append({**logs, "epoch": state.epoch, "step": state.global_step})
        else:
            self._trainer.log(logs)
        self._say(str(probe))

    def _audit(self, *, model: Any, processing_class: Any = None, tokenizer: Any = None, **_: Any) -> Audit:
        """Save the model as it is now and let the program ask it."""
        tokenizer = self.tokenizer or processing_class or tokenizer
        # A processor of several kinds of input has a tokenizer inside.
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if tokenizer is None:
            raise ValueError("the trainer has no tokenizer: give ForgettingCallback(tokenizer=...)")
        with tempfile.TemporaryDirectory(prefix="unforget-", dir=self.scratch) as scratch:
            saved = Path(scratch, "model")
            _whole(model).save_pretrained(saved)
            tokenizer.save_pretrained(saved)
            # A cache of its own: no audit of a model on its way is asked for again.
            return audit(saved, self.facts, env={"UNFORGET_CACHE": scratch}, **self._asking)

    def _say(self, line: str) -> None:
        if not self.quiet:
            print(f"forgetting: {line}", flush=True)  # noqa: T201


def _is_known(fact: AuditedFact) -> bool:
    return fact.label == "HighlyKnown"


def _whole(model: Any) -> Any:
    """The model under what wraps it: torch.compile, PEFT adapters (merged in a copy)."""
    model = getattr(model, "_orig_mod", model)
    return copy.deepcopy(model).merge_and_unload() if hasattr(model, "merge_and_unload") else model
