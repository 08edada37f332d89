"""The program's results as frozen dataclasses, read from its JSON. Nothing is recomputed here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ._tables import MAX_ROWS, Table, from_json, frozen, html_line, html_table, percent, read_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Label = Literal["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]
Split = Literal["known", "unknown", "held", "maybe_known", "weakly_known"]
Outcome = Literal["learned", "not_learned", "kept", "forgotten", "gained", "never_knew"]

SPLITS: tuple[Split, ...] = ("known", "unknown", "held", "maybe_known", "weakly_known")


@dataclass(frozen=True)
class Answer:
    """A model's answer to a prompt.

    Attributes:
        prompt: the prompt, as given.
        answer: the answer; of several samples the first.
        answers: all samples, where there are several.
        tokens: with `logprobs`: id, log-probability (nats) and most likely tokens at each position of `answer`.

    """

    prompt: str
    answer: str
    answers: tuple[str, ...] = ()
    tokens: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        """The text of the answer."""
        return self.answer


@dataclass(frozen=True)
class TokenScore:
    """A token of a completion with its log-probability (nats)."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Score(Table):
    """The log-probability (nats) of a completion, and of each of its tokens."""

    logprob: float
    tokens: tuple[TokenScore, ...] = field(repr=False)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Score:
        """From a line of `unforget score`."""
        return cls(row["logprob"], tuple(from_json(TokenScore, token) for token in row["tokens"]))

    def _rows(self) -> tuple[type, Sequence[object]]:
        return TokenScore, self.tokens


@dataclass(frozen=True)
class LabelFractions:
    """The number of facts, and the fraction (0 to 1) of each label."""

    facts: int
    highly_known: float
    maybe_known: float
    weakly_known: float
    unknown: float

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> LabelFractions:
        """From an entry of `summary.json`."""
        labels = [row[label] for label in ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")]
        return cls(row["facts"], *labels)


@dataclass(frozen=True)
class AuditedFact:
    """A fact with its label: a line of an audit's `facts.jsonl`."""

    relation: str
    subject: str
    question: str
    object: str
    label: str
    greedy_correct: tuple[bool, ...]
    p_sampled: float | None
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Audit(Table):
    """How well a model knows a set of facts.

    Attributes:
        model: the model's name, as given.
        overall: the label fractions of all facts.
        relations: the label fractions of each relation.
        facts: the facts, in the order of their files.
        settings: prompts, samples and the other settings of the audit.
        notes: rows that were skipped.
        seconds: duration; near 0 if the audit was cached.
        plot: the label fractions as an SVG.
        path: the output directory, if one was given.

    """

    model: str
    overall: LabelFractions
    relations: Mapping[str, LabelFractions]
    facts: tuple[AuditedFact, ...] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...] = field(repr=False)
    seconds: float = field(repr=False)
    plot: str = field(repr=False)
    path: Path | None = None

    @classmethod
    def read(cls, directory: Path, *, keep: bool = True) -> Audit:
        """From a directory written by `unforget audit --out`."""
        summary = json.loads(directory.joinpath("summary.json").read_text(encoding="utf-8"))
        return cls(
            model=summary["model"],
            overall=LabelFractions.from_json(summary["all"]),
            relations={name: LabelFractions.from_json(row) for name, row in summary["relations"].items()},
            facts=tuple(from_json(AuditedFact, row) for row in read_lines(directory / "facts.jsonl")),
            settings=summary["settings"],
            notes=tuple(summary["notes"]),
            seconds=summary["seconds"],
            plot=directory.joinpath("knowledge.svg").read_text(encoding="utf-8"),
            path=directory if keep else None,
        )

    def _rows(self) -> tuple[type, Sequence[object]]:
        return AuditedFact, self.facts

    def _repr_html_(self) -> str:
        groups = {**self.relations, "all": self.overall}
        rows = [
            (
                name,
                fractions.facts,
                *map(
                    percent,
                    (fractions.highly_known, fractions.maybe_known, fractions.weakly_known, fractions.unknown),
                ),
            )
            for name, fractions in groups.items()
        ]
        headers = ("relation", "facts", "HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")
        return html_line(f"Facts known to {self.model}") + html_table(headers, rows)


@dataclass(frozen=True)
class AccuracyStages:
    """Accuracy (0 to 1) at four stages.

    Attributes:
        audit: few-shot, before training; None without an audit.
        start: at the training prompt, before training.
        peak: at the training prompt, after the best epoch.
        after: at the training prompt, after training.

    """

    audit: float | None
    start: float
    peak: float
    after: float


@dataclass(frozen=True)
class Counts:
    """Number of facts by outcome."""

    learned: int
    not_learned: int
    kept: int
    forgotten: int
    gained: int
    never_knew: int


@dataclass(frozen=True)
class Forgotten:
    """Known held-out facts that are wrong at the end.

    Attributes:
        count: the facts that are wrong.
        of: the known facts.
        pp: 100 * count / of.
        interval: its 95% Wilson interval; None for a single fact.

    """

    count: int
    of: int
    pp: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        """The count with its denominator; of zero the rule of three."""
        if self.interval is None:
            return f"{self.count} of {self.of}"
        if self.count == 0:
            return f"0 of {self.of} (up to {percent(min(3 / self.of, 1))})"
        low, high = self.interval
        return f"{self.count} of {self.of}, {self.pp:.1f}% (95%: {low:.1f} to {high:.1f})"


@dataclass(frozen=True)
class Result:
    """A run's `result.json`.

    `forgotten` counts the held-out facts that were known before training and are wrong at the end,
    `only_known_forgotten` the same facts after the Only Known run, if there is one. `forgetting_pp` is
    100 * (peak - after) on the held-out facts: since the best epoch, which may come after most of the loss.
    """

    method: str
    model: str
    accuracy: Mapping[str, AccuracyStages]
    forgotten: Forgotten | None
    only_known_forgotten: Forgotten | None
    gap_to_only_known_pp: float | None
    gap_to_only_known_interval: tuple[float, float] | None
    forgetting_pp: float | None
    forgetting_interval: tuple[float, float] | None
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
    audit_seconds: float = 0.0
    preset: str | None = None
    goal: str = "facts"
    not_absorbed: float | None = None
    interpolation: float | None = None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Result:
        """From the object in `result.json`."""
        accuracy = {split: from_json(AccuracyStages, stages) for split, stages in row["accuracy"].items()}
        counts: dict[str, Any] = {"accuracy": accuracy, "counts": from_json(Counts, row["counts"])}
        for name in ("forgotten", "only_known_forgotten"):
            counts[name] = None if row[name] is None else from_json(Forgotten, row[name])
        return from_json(cls, {**row, **counts})


@dataclass(frozen=True)
class FactResult:
    """A fact of a run: a line of its `facts.jsonl`, without the nested fields."""

    split: str
    relation: str
    subject: str
    question: str
    object: str
    label_before: str | None
    label_after: str | None
    few_shot_accuracy: float | None
    answer_before: str
    answer_after: str
    correct_before: bool
    correct_at_start: bool
    correct_at_peak: bool
    correct_after: bool
    forgotten_once: bool
    outcome: str
    p_before: float | None = None
    p_after: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Accuracy (0 to 1) of each split after an epoch, None for a missing split. Epoch 0 is before training."""

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
class ComparedFact:
    """A fact, the answers before and after, and its outcome."""

    relation: str
    subject: str
    question: str
    object: str
    before: str
    after: str
    correct_before: bool
    correct_after: bool
    outcome: str
    split: str | None = None


@dataclass(frozen=True)
class Comparison(Table):
    """Which facts were learned, kept and forgotten. `models` names the run, or the two models."""

    models: tuple[str, ...]
    counts: Counts
    facts: tuple[ComparedFact, ...] = field(repr=False)

    @classmethod
    def from_json(cls, row: Mapping[str, Any], models: tuple[str, ...]) -> Comparison:
        """From the output of `unforget compare --json`."""
        facts = tuple(from_json(ComparedFact, fact) for fact in row["facts"])
        return cls(models, from_json(Counts, row), facts)

    def with_outcome(self, outcome: Outcome) -> tuple[ComparedFact, ...]:
        """The facts with one outcome."""
        return tuple(fact for fact in self.facts if fact.outcome == outcome)

    def _rows(self) -> tuple[type, Sequence[object]]:
        return ComparedFact, self.facts

    def _repr_html_(self) -> str:
        shown: Sequence[ComparedFact] = [
            fact
            for outcome in ("forgotten", "learned", "gained", "kept")
            for fact in self.facts
            if fact.outcome == outcome
        ][:MAX_ROWS]
        counts = ", ".join(f"{outcome.replace('_', ' ')} {count}" for outcome, count in vars(self.counts).items())
        rest = "" if len(shown) == len(self.facts) else f" ({len(shown)} shown)"
        rows = [(fact.outcome, fact.question, fact.object, fact.before, fact.after) for fact in shown]
        headers = ("outcome", "question", "correct answer", "before", "after")
        summary = f"{' to '.join(self.models)}: {counts} of {len(self.facts)} facts{rest}"
        return html_line(summary) + html_table(headers, rows)


@dataclass(frozen=True)
class GatedFact:
    """A fact of the baseline run, with the baseline's answer and the model's answer."""

    split: str
    relation: str
    question: str
    object: str
    before: str
    now: str
    correct_before: bool
    correct_now: bool


@dataclass(frozen=True)
class Gate(Table):
    """A model compared with a baseline run: the known facts that it answers wrongly, with their 95% interval.

    `few_shot`: asked behind the few-shot prompts of the baseline's audit; otherwise at its training prompt.
    """

    passed: bool
    budget: float
    split: str
    forgotten_pp: float
    interval: tuple[float, float] | None
    facts: tuple[GatedFact, ...] = field(repr=False)
    forgotten: Forgotten | None = None
    few_shot: bool = True

    @classmethod
    def from_json(cls, row: Mapping[str, Any], *, passed: bool) -> Gate:
        """From the output of `unforget gate --json`."""
        facts = tuple(from_json(GatedFact, fact) for fact in row["facts"])
        forgotten = from_json(Forgotten, row["forgotten"])
        return from_json(cls, {**row, "passed": passed, "facts": facts, "forgotten": forgotten})

    def _rows(self) -> tuple[type, Sequence[object]]:
        return GatedFact, self.facts

    def _repr_html_(self) -> str:
        forgotten = [fact for fact in self.facts if fact.correct_before and not fact.correct_now]
        verdict = "within" if self.passed else "over"
        rows = [(fact.question, fact.object, fact.before, fact.now) for fact in forgotten[:MAX_ROWS]]
        counted = f"{self.forgotten_pp:.1f} pp" if self.forgotten is None else str(self.forgotten)
        line = f"{counted} forgotten, {verdict} the budget of {self.budget} pp; {len(forgotten)} facts of all splits"
        return html_line(line) + html_table(("question", "correct answer", "before", "now"), rows)


@dataclass(frozen=True)
class Neighbour:
    """A new fact near a known one: the cosine similarity of their subjects' hidden states."""

    subject: str
    object: str
    cosine: float


@dataclass(frozen=True)
class AtRiskFact:
    """A held-out fact in the ranking by risk, made before training.

    `risk` is the fraction of the other facts that rank lower, not a probability. `warning` says why the ranking tells
    little about the fact's relation.
    """

    subject: str
    relation: str
    question: str
    object: str
    risk: float
    nearest: tuple[Neighbour, ...] = ()
    log_odds: float | None = None
    warning: str | None = None


@dataclass(frozen=True)
class Forecast(Table):
    """The held-out facts, highest risk first."""

    facts: tuple[AtRiskFact, ...]

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, Any]]) -> Forecast:
        """From the output of `unforget forecast --json`."""

        def fact(row: Mapping[str, Any]) -> AtRiskFact:
            nearest = [from_json(Neighbour, near) for near in row["nearest"]]
            return from_json(AtRiskFact, {**row, "nearest": nearest})

        return cls(frozen([fact(row) for row in rows]))

    def _rows(self) -> tuple[type, Sequence[object]]:
        return AtRiskFact, self.facts

    def _repr_html_(self) -> str:
        rows = [
            (fact.risk, fact.question, fact.object, ", ".join(near.subject for near in fact.nearest))
            for fact in self.facts[:MAX_ROWS]
        ]
        return html_table(("risk", "question", "correct answer", "nearest new facts"), rows)
