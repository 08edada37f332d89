"""The commands as functions, and runs."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, overload

from ._errors import UnforgetError, UsageError
from ._process import run as _run
from ._results import Audit, Comparison, Evaluation, FactResult, Forecast, Gate, Result
from ._tables import Table, from_json, html_line, html_table, percent, read_lines

if TYPE_CHECKING:
    import pandas as pd

Pathlike = Union[str, "os.PathLike[str]"]
Model = Pathlike
"""A Hugging Face directory, a `.gguf` file, a hub id, a name in the registry, or a `Run`."""

Facts = Union[Pathlike, Sequence[Pathlike], Sequence[Mapping[str, Any]], "pd.DataFrame"]
"""Files, `pack:world`, or rows with `subject`, `relation` and `object` (a list of dicts, a DataFrame)."""

Match = Literal["exact", "contains"]


@dataclass(frozen=True)
class Run(Table):
    """A run directory. Each property reads its file when it is used."""

    path: Path

    def __fspath__(self) -> str:
        """The directory, so that a run can be passed as a path."""
        return str(self.path)

    @property
    def result(self) -> Result | None:
        """The contents of `result.json`; None until the run has finished."""
        path = self.path / "result.json"
        return Result.from_json(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    @property
    def done(self) -> bool:
        """Whether the run has finished; `unforget.resume` continues one that has not."""
        return self.path.joinpath("result.json").is_file()

    @property
    def model(self) -> Path:
        """The tuned model: a directory that `transformers.AutoModelForCausalLM.from_pretrained` loads."""
        return self.path / "model"

    @property
    def facts(self) -> tuple[FactResult, ...]:
        """The result of each fact; empty until the run has finished."""
        path = self.path / "facts.jsonl"
        return tuple(from_json(FactResult, row) for row in read_lines(path)) if path.is_file() else ()

    def metrics(self, type: str | None = None) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, or those of one `type`: `step`, `eval`, `snapshot`, ..."""
        path = self.path / "metrics.jsonl"
        lines = read_lines(path) if path.is_file() else []
        return [line for line in lines if type in (None, line["type"])]

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The accuracies after each epoch."""
        return tuple(from_json(Evaluation, {**line, **line["accuracy"]}) for line in self.metrics("eval"))

    @property
    def environment(self) -> dict[str, Any]:
        """The contents of `environment.json`: versions, machine, seed, and the checksums of model and data."""
        environment: dict[str, Any] = json.loads(self.path.joinpath("environment.json").read_text(encoding="utf-8"))
        return environment

    def resume(self, **options: Any) -> Run:
        """See `unforget.resume`."""
        return resume(self, **options)

    def compare(self) -> Comparison:
        """See `unforget.compare`."""
        return compare(self)

    def report(self, out: str | os.PathLike[str], **options: Any) -> Path:
        """See `unforget.report`."""
        return report(self, out=out, **options)

    def export(self, out: str | os.PathLike[str], **options: Any) -> Path:
        """See `unforget.export`."""
        return export(self, out=out, **options)

    def _rows(self) -> tuple[type, Sequence[object]]:
        return FactResult, self.facts

    def _repr_html_(self) -> str:
        result = self.result
        if result is None:
            return html_line(f"{self.path}: not finished; unforget.resume continues it")
        counts = result.counts
        new = counts.learned + counts.not_learned
        summary = f"{result.method} on {result.model}: learned {counts.learned} of {new} new facts"
        if result.forgotten is not None:
            summary += f"; forgot {result.forgotten} known held-out facts"
        if result.only_known_forgotten is not None:
            summary += f"; Only Known forgot {result.only_known_forgotten}"
        if result.forgetting_pp is not None:
            summary += f"; {result.forgetting_pp:.1f} pp since its best epoch"
        summary += f"; {result.epochs} epochs, {result.seconds:.0f} s"
        rows = [
            (split, *("" if value is None else percent(value) for value in (s.audit, s.start, s.peak, s.after)))
            for split, s in result.accuracy.items()
        ]
        headers = ("accuracy", "audit", "before", "best epoch", "after")
        return html_line(f"{self.path}: {summary}") + html_table(headers, rows)


def audit(
    model: Model,
    facts: Facts = "pack:world",
    *,
    out: Pathlike | None = None,
    num_prompts: int | None = None,
    shots: int | None = None,
    samples: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    exemplars: Facts | None = None,
    sample: bool = False,
    full_answers: bool = False,
    match: Match | None = None,
    chat: bool = False,
    skip_bad_rows: bool = False,
    several_answers: bool = False,
    force: bool = False,
    seed: int | None = None,
    threads: int | None = None,
    quiet: bool = False,
    env: Mapping[str, str] | None = None,
) -> Audit:
    """Label every fact by how well the model knows it (SLiCK). `unforget audit --help` explains the options.

    Without `out` no files are kept. A repeated audit is read from the program's cache.
    """
    with tempfile.TemporaryDirectory(prefix="unforget-") as scratch:
        directory = Path(scratch, "audit") if out is None else Path(out)
        args = _options(
            out=directory,
            num_prompts=num_prompts,
            shots=shots,
            samples=samples,
            temperature=temperature,
            top_k=top_k,
            exemplars=_files(exemplars, Path(scratch, "exemplars.jsonl")),
            sample=sample,
            full_answers=full_answers,
            match=match,
            chat=chat,
            skip_bad_rows=skip_bad_rows,
            several_answers=several_answers,
            force=force,
            seed=seed,
            threads=threads,
        )
        files = _files(facts, Path(scratch, "facts.jsonl"))
        _run("audit", [*args, "--", _model(model), *files], quiet=quiet, env=env)
        return Audit.read(directory, keep=out is not None)


def tune(
    model: Model,
    *,
    out: Pathlike,
    learn: Facts | None = None,
    keep: Facts | None = None,
    held: Facts | None = None,
    method: str | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    budget: float | None = None,
    set: Mapping[str, Any] | None = None,
    baseline: Pathlike | None = None,
    control: bool = False,
    on_nonfinite: Literal["stop", "skip"] | None = None,
    force: bool = False,
    keep_checkpoints: bool = False,
    watch: bool = False,
    seed: int | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> Run:
    """Fine-tune a model on new facts, measure what it forgot, and write the run directory `out`.

    `model` may also be a config file (`experiment.toml`). `set` takes any config key:
    `set={"train.num_epochs": 8, "method.decoys": {}}`. Facts given as rows are written next to the run directory
    (`OUT.learn.jsonl`), where `resume` reads them. `control` trains an Only Known run first, in `OUT-only-known`.

    Raises `OverBudget` if more than `budget` percentage points were forgotten (the model is saved, and `error.run` is
    the run), and `Interrupted` on Ctrl-C, after a checkpoint has been written.
    """
    run = Run(Path(out))
    rows = {name: run.path.with_name(f"{run.path.name}.{name}.jsonl") for name in ("learn", "keep", "held")}
    args = _options(
        out=run.path,
        learn=_files(learn, rows["learn"]),
        keep=_files(keep, rows["keep"]),
        held=_files(held, rows["held"]),
        method=method,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        budget=budget,
        set=[f"{key}={_toml(value)}" for key, value in (set or {}).items()],
        baseline=baseline,
        control=control,
        on_nonfinite=on_nonfinite,
        force=force,
        keep_checkpoints=keep_checkpoints,
        watch=watch,
        seed=seed,
        threads=threads,
    )
    return _write_run(run, "tune", [*args, "--", _model(model)], quiet=quiet)


def resume(
    run: Pathlike,
    *,
    keep_checkpoints: bool = False,
    watch: bool = False,
    threads: int | None = None,
    quiet: bool = False,
) -> Run:
    """Continue an interrupted run from its newest complete checkpoint. The result is bitwise identical.

    A finished run is left unchanged.
    """
    resumed = Run(Path(run))
    args = _options(keep_checkpoints=keep_checkpoints, watch=watch, threads=threads)
    return _write_run(resumed, "resume", [*args, "--", str(resumed.path)], quiet=quiet)


def open(run: Pathlike) -> Run:
    """The run in a directory, finished or not. Does not start the program."""
    opened = Run(Path(run))
    if not opened.path.joinpath("config.toml").is_file():
        raise UsageError(f"`{opened.path}` is not a run directory: it has no config.toml", exit_code=2)
    return opened


@overload
def compare(before: Pathlike) -> Comparison: ...  # type: ignore[overload-overlap]
@overload
def compare(before: Sequence[Pathlike]) -> list[Comparison]: ...
@overload
def compare(
    before: Model,
    after: Model,
    facts: Facts,
    *,
    match: Match | None = None,
    chat: bool = False,
    threads: int | None = None,
    quiet: bool = False,
) -> Comparison: ...


def compare(
    before: Pathlike | Sequence[Pathlike],
    after: Model | None = None,
    facts: Facts | None = None,
    *,
    match: Match | None = None,
    chat: bool = False,
    threads: int | None = None,
    quiet: bool = False,
) -> Comparison | list[Comparison]:
    """Which facts were learned, kept and forgotten: by a run, by each of several runs, or between two models.

    A run is compared from its files. Two models are evaluated on `facts`.
    """
    if not isinstance(before, (str, os.PathLike)):
        return [compare(run) for run in before]
    with tempfile.TemporaryDirectory(prefix="unforget-") as scratch:
        args = _options(
            facts=_files(facts, Path(scratch, "facts.jsonl")),
            match=match,
            chat=chat,
            threads=threads,
        )
        models = [os.fspath(model) for model in (before, after) if model is not None]
        stdout = _run("compare", [*args, "--", *models], quiet=quiet)
    return Comparison.from_json(json.loads(stdout), tuple(models))


def gate(
    model: Model,
    baseline: Pathlike,
    *,
    budget: float | None = None,
    junit: Pathlike | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> Gate:
    """Check that a model forgot at most `budget` percentage points (default 1) of what a finished run knew."""
    args = _options(baseline=baseline, budget=budget, junit=junit, threads=threads)
    row = json.loads(_run("gate", [*args, "--", _model(model)], quiet=quiet, allow=[3]))
    return Gate.from_json(row, passed=row["forgotten_pp"] <= row["budget"])


def forecast(
    model: Model,
    *,
    learn: Facts,
    held: Facts,
    seed: int | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> Forecast:
    """Rank the `held` facts by their risk of being forgotten when `learn` is trained, before any training."""
    with tempfile.TemporaryDirectory(prefix="unforget-") as scratch:
        args = _options(
            learn=_files(learn, Path(scratch, "learn.jsonl")),
            held=_files(held, Path(scratch, "held.jsonl")),
            seed=seed,
            threads=threads,
        )
        return Forecast.from_json(json.loads(_run("forecast", [*args, "--", _model(model)], quiet=quiet)))


def report(
    runs: Pathlike | Sequence[Pathlike], *, out: Pathlike, bundle: Pathlike | None = None, quiet: bool = False
) -> Path:
    """Write a self-contained HTML page about runs, and an archive of its data if `bundle` is given."""
    run_list = [runs] if isinstance(runs, (str, os.PathLike)) else runs
    args = _options(out=out, bundle=bundle)
    _run("report", [*args, "--", *(os.fspath(run) for run in run_list)], quiet=quiet)
    return Path(out)


def export(
    run: Model,
    *,
    out: Pathlike,
    to: Literal["hf", "gguf", "peft"] = "hf",
    dtype: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Path:
    """Write a model, or the model of a run, for transformers (`hf`), llama.cpp and Ollama (`gguf`) or PEFT."""
    args = _options(to=to, out=out, dtype=dtype, force=force)
    _run("export", [*args, "--", os.fspath(run)], quiet=quiet)
    return Path(out)


def _model(model: Model) -> str:
    """The MODEL argument; for a finished run, its model directory."""
    tuned = Path(model, "model")
    return str(tuned) if tuned.is_dir() else os.fspath(model)


def _write_run(run: Run, command: str, args: Sequence[str], *, quiet: bool) -> Run:
    """Run a command that writes `run`. An exception gets the run as its `run`, if the directory was created."""
    try:
        _run(command, args, quiet=quiet)
    except UnforgetError as error:
        if run.path.joinpath("config.toml").is_file():
            error.run = run
        raise
    return run


def _options(**options: Any) -> list[str]:
    """`--name=value` for each option that is not None or False; one per item for a list."""
    args = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            args.append(flag)
        elif isinstance(value, list):
            args += [f"{flag}={item}" for item in value]
        elif value is not None and value is not False:
            args.append(f"{flag}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
    return args


def _files(facts: Facts | None, path: Path) -> list[str]:
    """The files of `facts`. Rows are written to the file `path` first."""
    if facts is None:
        return []
    if isinstance(facts, (str, os.PathLike)):
        return [os.fspath(facts)]
    rows: Sequence[Any] = facts if isinstance(facts, Sequence) else facts.to_dict("records")
    if not all(isinstance(row, Mapping) for row in rows):
        return [os.fspath(file) for file in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            # An empty cell of a DataFrame is NaN, which is not equal to itself.
            present = {name: value for name, value in row.items() if value is not None and value == value}  # noqa: PLR0124
            file.write(json.dumps(present, ensure_ascii=False) + "\n")
    return [str(path)]


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def _toml(value: Any) -> str:
    """A value in TOML syntax."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, os.PathLike)):
        return json.dumps(os.fspath(value), ensure_ascii=False)
    if isinstance(value, Mapping):
        pairs = (f"{key if _BARE_KEY.fullmatch(key) else _toml(key)} = {_toml(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_toml, value)) + "]"
    raise TypeError(f"not a TOML value: {value!r}")
