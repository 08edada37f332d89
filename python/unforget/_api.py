"""The commands as functions."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, overload

from ._errors import UsageError
from ._results import Audit, Comparison, Forecast, Gate, Run
from ._run import run as _run

if TYPE_CHECKING:
    import pandas as pd

Pathlike = Union[str, "os.PathLike[str]"]
Model = Pathlike
"""A Hugging Face directory, a `.gguf` file, a hub id, a name in the registry, or a `Run`."""

Facts = Union[Pathlike, Sequence[Pathlike], Sequence[Mapping[str, Any]], "pd.DataFrame"]
"""Files, `pack:world`, or rows with `subject`, `relation` and `object` (a list of dicts, a DataFrame)."""

Match = Literal["exact", "contains"]


def audit(
    model: Model,
    facts: Facts = "pack:world",
    *,
    out: Pathlike | None = None,
    runs: int | None = None,
    shots: int | None = None,
    samples: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    exemplars: Facts | None = None,
    sampled: bool = False,
    whole_answers: bool = False,
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
    """Label every fact by how well the model knows it. `unforget audit --help` says what each option is.

    Without `out` nothing is left on the disk. The same audit made again comes from the program's cache.
    """
    with tempfile.TemporaryDirectory(prefix="unforget-") as scratch:
        directory = Path(scratch, "audit") if out is None else Path(out)
        args = _options(
            out=directory,
            runs=runs,
            shots=shots,
            samples=samples,
            temperature=temperature,
            top_k=top_k,
            exemplars=_files(exemplars, Path(scratch, "exemplars.jsonl")),
            sampled=sampled,
            whole_answers=whole_answers,
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
    budget: float | None = None,
    set: Mapping[str, Any] | None = None,
    baseline: Pathlike | None = None,
    on_nonfinite: Literal["stop", "skip"] | None = None,
    force: bool = False,
    keep_checkpoints: bool = False,
    watch: bool = False,
    seed: int | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> Run:
    """Teach a model new facts, measure what it forgot, and write the run directory `out`.

    `model` may also be a config (`experiment.toml`). `set` has any key of the config:
    `set={"train.num_epochs": 8, "method.decoys": {}}`. Rows that are no file are written beside the run
    (`OUT.learn.jsonl`), where `resume` finds them again.

    Raises `OverBudget` where more than `budget` percentage points were forgotten (the model was saved; the error has
    the run), and `Interrupted` on Ctrl-C, when a checkpoint has been written.
    """
    run = Run(Path(out))
    beside = {name: run.path.with_name(f"{run.path.name}.{name}.jsonl") for name in ("learn", "keep", "held")}
    args = _options(
        out=run.path,
        learn=_files(learn, beside["learn"]),
        keep=_files(keep, beside["keep"]),
        held=_files(held, beside["held"]),
        method=method,
        budget=budget,
        set=[f"{key}={_toml(value)}" for key, value in (set or {}).items()],
        baseline=baseline,
        on_nonfinite=on_nonfinite,
        force=force,
        keep_checkpoints=keep_checkpoints,
        watch=watch,
        seed=seed,
        threads=threads,
    )
    _run("tune", [*args, "--", _model(model)], quiet=quiet, writes=run)
    return run


def resume(
    run: Pathlike,
    *,
    keep_checkpoints: bool = False,
    watch: bool = False,
    threads: int | None = None,
    quiet: bool = False,
) -> Run:
    """Go on with an interrupted run from its newest whole checkpoint, to the bit; a finished one is left as it is."""
    there = Run(Path(run))
    args = _options(keep_checkpoints=keep_checkpoints, watch=watch, threads=threads)
    _run("resume", [*args, "--", str(there.path)], quiet=quiet, writes=there)
    return there


def open(run: Pathlike) -> Run:
    """The run in a directory, done or not. Nothing is started."""
    there = Run(Path(run))
    if not there.path.joinpath("config.toml").is_file():
        raise UsageError(f"`{there.path}` is not a run directory: it has no config.toml", exit_code=2)
    return there


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
    """Tell what was learned, kept and forgotten: by a run, by each of several runs, or between two models.

    A run is told from its records; two models are asked the `facts`.
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
        of = [os.fspath(model) for model in (before, after) if model is not None]
        said = _run("compare", [*args, "--", *of], quiet=quiet)
    return Comparison.from_json(json.loads(said), tuple(of))


def gate(
    model: Model,
    baseline: Pathlike,
    *,
    budget: float | None = None,
    junit: Pathlike | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> Gate:
    """Ask a model what a finished run knew: more than `budget` pp (default 1) of it may not be lost."""
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
    """Before any training: which of the `held` facts learning `learn` would endanger."""
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
    """Write one self-contained page about runs, and an archive of its data where `bundle` names one."""
    several = [runs] if isinstance(runs, (str, os.PathLike)) else runs
    args = _options(out=out, bundle=bundle)
    _run("report", [*args, "--", *(os.fspath(one) for one in several)], quiet=quiet)
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
    """Write a run's model, or any, as transformers (`hf`), llama.cpp and Ollama (`gguf`) or PEFT load it."""
    args = _options(to=to, out=out, dtype=dtype, force=force)
    _run("export", [*args, "--", os.fspath(run)], quiet=quiet)
    return Path(out)


def _model(model: Model) -> str:
    """What the program calls a model: of a run that is done, the directory of its model."""
    tuned = Path(model, "model")
    return str(tuned) if tuned.is_dir() else os.fspath(model)


def _options(**options: Any) -> list[str]:
    """`--name=value` for each option that is given; a list gives one for each of its members."""
    args = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            args.append(flag)
        elif isinstance(value, list):
            args += [f"{flag}={one}" for one in value]
        elif value is not None and value is not False:
            args.append(f"{flag}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
    return args


def _files(facts: Facts | None, beside: Path) -> list[str]:
    """The files that facts are in; rows are written to `beside` first."""
    if facts is None:
        return []
    if isinstance(facts, (str, os.PathLike)):
        return [os.fspath(facts)]
    rows: Sequence[Any] = facts if isinstance(facts, Sequence) else facts.to_dict("records")
    if not all(isinstance(row, Mapping) for row in rows):
        return [os.fspath(path) for path in rows]
    beside.parent.mkdir(parents=True, exist_ok=True)
    with beside.open("w", encoding="utf-8") as file:
        for row in rows:
            # An empty cell of a DataFrame is a NaN, which alone is not equal to itself.
            there = {name: value for name, value in row.items() if value is not None and value == value}  # noqa: PLR0124
            file.write(json.dumps(there, ensure_ascii=False) + "\n")
    return [str(beside)]


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def _toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, os.PathLike)):
        return json.dumps(os.fspath(value), ensure_ascii=False)
    if isinstance(value, Mapping):
        pairs = (f"{key if _BARE_KEY.fullmatch(key) else _toml(key)} = {_toml(one)}" for key, one in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_toml, value)) + "]"
    raise TypeError(f"a config has no value like {value!r}")
