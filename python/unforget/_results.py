"""What the program found, as frozen dataclasses over its own JSON; nothing is computed anew here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ._tables import SHOWN, Table, from_json, frozen, html_line, html_table, percent, read_lines

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Label = Literal["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]
Split = Literal["known", "unknown", "held", "maybe_known", "weakly_known"]
State = Literal["learned", "not_learned", "kept", "forgotten", "gained", "never_knew"]

SPLITS: tuple[Split, ...] = ("known", "unknown", "held", "maybe_known", "weakly_known")


@dataclass(frozen=True)
class Shares:
    """How many facts there are, and the share (0 to 1) of each label."""

    facts: int
    highly_known: float
    maybe_known: float
    weakly_known: float
    unknown: float

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Shares:
        """From a relation of `summary.json`."""
        labels = [row[label] for label in ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")]
        return cls(row["facts"], *labels)


@dataclass(frozen=True)
class AuditedFact:
    """A fact and how well the model knows it: a line of an audit's `facts.jsonl`."""

    relation: str
    subject: str
    question: str
    object: str
    label: str
    greedy_right: tuple[bool, ...]
    p_sampled: float | None
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Audit(Table):
    """What a model knows.

    Attributes:
        model: what the model was called.
        overall: the shares of all facts.
        relations: the shares by relation.
        facts: the facts in the order of their files.
        settings: how they were asked.
        notes: what was left out.
        seconds: how long it took; next to nothing where it came from the cache.
        picture: the shares as an SVG.
        path: the directory that was written, if one was named.

    """

    model: str
    overall: Shares
    relations: Mapping[str, Shares]
    facts: tuple[AuditedFact, ...] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...] = field(repr=False)
    seconds: float = field(repr=False)
    picture: str = field(repr=False)
    path: Path | None = None

    @classmethod
    def read(cls, directory: Path, *, keep: bool = True) -> Audit:
        """From the directory that `unforget audit --out` wrote."""
        summary = json.loads(directory.joinpath("summary.json").read_text(encoding="utf-8"))
        return cls(
            model=summary["model"],
            overall=Shares.from_json(summary["all"]),
            relations={name: Shares.from_json(row) for name, row in summary["relations"].items()},
            facts=tuple(from_json(AuditedFact, row) for row in read_lines(directory / "facts.jsonl")),
            settings=summary["settings"],
            notes=tuple(summary["notes"]),
            seconds=summary["seconds"],
            picture=directory.joinpath("knowledge.svg").read_text(encoding="utf-8"),
            path=directory if keep else None,
        )

    def _rows(self) -> tuple[type, Sequence[object]]:
        return AuditedFact, self.facts

    def _repr_html_(self) -> str:
        parts = {**self.relations, "all": self.overall}
        rows = [
            (
                name,
                shares.facts,
                *map(percent, (shares.highly_known, shares.maybe_known, shares.weakly_known, shares.unknown)),
            )
            for name, shares in parts.items()
        ]
        heads = ("relation", "facts", "HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")
        return html_line(f"What {self.model} knows") + html_table(heads, rows)


@dataclass(frozen=True)
class Moments:
    """Shares right (0 to 1): few-shot before training, at the training prompt before, at its best, and at the end."""

    audit: float | None
    start: float
    peak: float
    after: float


@dataclass(frozen=True)
class Counts:
    """Facts by what became of them."""

    learned: int
    not_learned: int
    kept: int
    forgotten: int
    gained: int
    never_knew: int


@dataclass(frozen=True)
class Result:
    """A run's `result.json`. `forgetting_pp` is 100 x (peak - after) on held-out facts, with its 95% interval."""

    method: str
    model: str
    accuracy: Mapping[str, Moments]
    forgetting_pp: float | None
    forgetting_interval: tuple[float, float] | None
    below_only_known_pp: float | None
    learned: float | None
    learned_paraphrased: float | None
    counts: Counts
    budget: float | None
    within_budget: bool | None
    epochs: int
    steps: int
    seconds: float
    eval_seconds: float
    peak_memory_bytes: int
    goal: str = "facts"
    not_absorbed: float | None = None
    interpolation: float | None = None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Result:
        """From the object that `result.json` is."""
        accuracy = {split: from_json(Moments, moments) for split, moments in row["accuracy"].items()}
        return from_json(cls, {**row, "accuracy": accuracy, "counts": from_json(Counts, row["counts"])})


@dataclass(frozen=True)
class RunFact:
    """A fact of a run: a line of its `facts.jsonl`, less what does not fit into a column."""

    split: str
    relation: str
    subject: str
    question: str
    object: str
    label_before: str | None
    label_after: str | None
    answer_before: str
    answer_after: str
    right_before: bool
    right_at_peak: bool
    right_after: bool
    lost_once: bool
    state: str
    p_before: float | None = None
    p_after: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Shares right (0 to 1) after an epoch, none of a part that the run does not have; epoch 0 is before training."""

    epoch: int
    step: int
    seconds: float
    known: float | None = None
    unknown: float | None = None
    held: float | None = None
    maybe_known: float | None = None
    weakly_known: float | None = None
    learned_paraphrased: float | None = None


@dataclass(frozen=True)
class Run(Table):
    """A run directory. Everything is read from its files when it is asked for."""

    path: Path

    def __fspath__(self) -> str:
        """The directory, so that a run stands wherever a path does."""
        return str(self.path)

    @property
    def result(self) -> Result | None:
        """The figures of the run; none while it is not done."""
        path = self.path / "result.json"
        return Result.from_json(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    @property
    def done(self) -> bool:
        """Whether it is finished; `unforget.resume` goes on with one that is not."""
        return self.path.joinpath("result.json").is_file()

    @property
    def model(self) -> Path:
        """The tuned model: what `transformers.AutoModelForCausalLM.from_pretrained` loads."""
        return self.path / "model"

    @property
    def facts(self) -> tuple[RunFact, ...]:
        """What became of each fact; nothing while the run is not done."""
        path = self.path / "facts.jsonl"
        return tuple(from_json(RunFact, row) for row in read_lines(path)) if path.is_file() else ()

    def metrics(self, type: str | None = None) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, or those of one `type`: `step`, `eval`, `snapshot` ..."""
        path = self.path / "metrics.jsonl"
        lines = read_lines(path) if path.is_file() else []
        return [line for line in lines if type in (None, line["type"])]

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """What was right after each epoch."""
        return tuple(from_json(Evaluation, {**line, **line["accuracy"]}) for line in self.metrics("eval"))

    @property
    def environment(self) -> dict[str, Any]:
        """Version, machine, seed and the checksums of model and data."""
        found: dict[str, Any] = json.loads(self.path.joinpath("environment.json").read_text(encoding="utf-8"))
        return found

    def resume(self, **options: Any) -> Run:
        """See `unforget.resume`."""
        from ._api import resume  # noqa: PLC0415

        return resume(self, **options)

    def compare(self) -> Comparison:
        """See `unforget.compare`."""
        from ._api import compare  # noqa: PLC0415

        return compare(self)

    def report(self, out: str | os.PathLike[str], **options: Any) -> Path:
        """See `unforget.report`."""
        from ._api import report  # noqa: PLC0415

        return report(self, out=out, **options)

    def export(self, out: str | os.PathLike[str], **options: Any) -> Path:
        """See `unforget.export`."""
        from ._api import export  # noqa: PLC0415

        return export(self, out=out, **options)

    def _rows(self) -> tuple[type, Sequence[object]]:
        return RunFact, self.facts

    def _repr_html_(self) -> str:
        result = self.result
        if result is None:
            return html_line(f"{self.path}: not done; unforget.resume goes on with it")
        counts = result.counts
        told = f"{result.method} on {result.model}: learned {counts.learned}, kept {counts.kept}, "
        told += f"forgotten {counts.forgotten}; {result.epochs} epochs, {result.seconds:.0f} s"
        if result.forgetting_pp is not None:
            told += f"; {result.forgetting_pp:.1f} pp of the held-out facts forgotten since their peak"
        rows = [
            (split, *("" if share is None else percent(share) for share in (m.audit, m.start, m.peak, m.after)))
            for split, m in result.accuracy.items()
        ]
        heads = ("right", "audit", "before", "best epoch", "after")
        return html_line(f"{self.path}: {told}") + html_table(heads, rows)


@dataclass(frozen=True)
class ComparedFact:
    """A fact, what was said before and after, and what became of it."""

    relation: str
    subject: str
    question: str
    object: str
    before: str
    after: str
    right_before: bool
    right_after: bool
    state: str
    split: str | None = None


@dataclass(frozen=True)
class Comparison(Table):
    """What was learned, kept and forgotten, fact by fact; `of` is the run, or the two models."""

    of: tuple[str, ...]
    counts: Counts
    facts: tuple[ComparedFact, ...] = field(repr=False)

    @classmethod
    def from_json(cls, row: Mapping[str, Any], of: tuple[str, ...]) -> Comparison:
        """From what `unforget compare --json` prints."""
        facts = tuple(from_json(ComparedFact, fact) for fact in row["facts"])
        return cls(of, from_json(Counts, row), facts)

    def of_state(self, state: State) -> tuple[ComparedFact, ...]:
        """The facts of one state."""
        return tuple(fact for fact in self.facts if fact.state == state)

    def _rows(self) -> tuple[type, Sequence[object]]:
        return ComparedFact, self.facts

    def _repr_html_(self) -> str:
        shown: Sequence[ComparedFact] = [
            fact for state in ("forgotten", "learned", "gained", "kept") for fact in self.facts if fact.state == state
        ][:SHOWN]
        counts = ", ".join(f"{state.replace('_', ' ')} {count}" for state, count in vars(self.counts).items())
        rest = "" if len(shown) == len(self.facts) else f" ({len(shown)} shown)"
        rows = [(fact.state, fact.question, fact.object, fact.before, fact.after) for fact in shown]
        heads = ("state", "question", "right answer", "before", "after")
        told = f"{' to '.join(self.of)}: {counts} of {len(self.facts)} facts{rest}"
        return html_line(told) + html_table(heads, rows)


@dataclass(frozen=True)
class GatedFact:
    """A fact of the baseline, what the baseline said and what the model says now."""

    split: str
    relation: str
    question: str
    object: str
    before: str
    now: str
    right_before: bool
    right_now: bool


@dataclass(frozen=True)
class Gate(Table):
    """A model held against a run: what of that it has forgotten, in percentage points, with a 95% interval."""

    passed: bool
    budget: float
    decides: str
    forgotten_pp: float
    interval: tuple[float, float] | None
    facts: tuple[GatedFact, ...] = field(repr=False)

    @classmethod
    def from_json(cls, row: Mapping[str, Any], *, passed: bool) -> Gate:
        """From what `unforget gate --json` prints."""
        facts = tuple(from_json(GatedFact, fact) for fact in row["facts"])
        return from_json(cls, {**row, "passed": passed, "facts": facts})

    def _rows(self) -> tuple[type, Sequence[object]]:
        return GatedFact, self.facts

    def _repr_html_(self) -> str:
        lost = [fact for fact in self.facts if fact.right_before and not fact.right_now]
        told = "within" if self.passed else "over"
        rows = [(fact.question, fact.object, fact.before, fact.now) for fact in lost[:SHOWN]]
        line = f"{self.forgotten_pp:.1f} pp forgotten, {told} the budget of {self.budget} pp; {len(lost)} facts lost"
        return html_line(line) + html_table(("question", "right answer", "before", "now"), rows)


@dataclass(frozen=True)
class Neighbour:
    """A new fact that lies near a known one."""

    subject: str
    object: str
    cosine: float


@dataclass(frozen=True)
class EndangeredFact:
    """A held fact and its risk, before any training."""

    subject: str
    relation: str
    question: str
    object: str
    risk: float
    nearest: tuple[Neighbour, ...] = ()


@dataclass(frozen=True)
class Forecast(Table):
    """The held facts, those in most danger first."""

    facts: tuple[EndangeredFact, ...]

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, Any]]) -> Forecast:
        """From what `unforget forecast --json` prints."""

        def fact(row: Mapping[str, Any]) -> EndangeredFact:
            nearest = [from_json(Neighbour, near) for near in row["nearest"]]
            return from_json(EndangeredFact, {**row, "nearest": nearest})

        return cls(frozen([fact(row) for row in rows]))

    def _rows(self) -> tuple[type, Sequence[object]]:
        return EndangeredFact, self.facts

    def _repr_html_(self) -> str:
        rows = [
            (fact.risk, fact.question, fact.object, ", ".join(near.subject for near in fact.nearest))
            for fact in self.facts[:SHOWN]
        ]
        return html_table(("risk", "question", "right answer", "nearest new facts"), rows)
