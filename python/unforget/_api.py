"""The commands as functions, and runs."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, overload

from ._config import KEYS
from ._errors import UnforgetError, UsageError
from ._metrics import Follower, OnMetrics
from ._process import run as _run
from ._results import Answer, Audit, Comparison, Evaluation, FactResult, Forecast, Gate, Result, Score
from ._tables import Table, from_json, html_line, html_table, json_lines, percent, read_lines

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import pyarrow as pa
    from typing_extensions import Unpack

    from ._config import ConfigKeys

Pathlike = Union[str, "os.PathLike[str]"]
Model = Pathlike
"""A Hugging Face directory, a `.gguf` file, a hub id, a name in the registry, or a `Run`."""

Facts = Union[Pathlike, Sequence[Pathlike], Sequence[Mapping[str, Any]], "pd.DataFrame", "pa.Table", "datasets.Dataset"]
"""Files, `pack:world`, or rows with `subject`, `relation` and `object`, or with `messages` or another form of training
text: a list of dicts, a pandas or polars DataFrame, an Arrow table, a `datasets.Dataset`."""

Scored = Union[Sequence[tuple[str, str]], Sequence[Mapping[str, Any]], "pd.DataFrame", "pa.Table", "datasets.Dataset"]
"""Prompts with completions: pairs, or rows with `prompt` and `completion` as for `Facts`."""

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

    def report(self, out: str | os.PathLike[str] | None = None, **options: Any) -> Path:
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
        summary = f"{result.preset or result.method} on {result.model}: learned {counts.learned} of {new} new facts"
        if result.forgotten is not None:
            summary += f"; forgot {result.forgotten} known held-out facts"
        if result.only_known_forgotten is not None:
            summary += f"; Only Known forgot {result.only_known_forgotten}"
        if result.forgetting_pp is not None:
            summary += f"; {result.forgetting_pp:.1f} pp lost since its best epoch"
        summary += f"; {result.epochs} epochs, {result.seconds + result.audit_seconds:.0f} s"
        rows = [
            (split, *("" if value is None else percent(value) for value in (s.audit, s.start, s.peak, s.after)))
            for split, s in result.accuracy.items()
        ]
        headers = ("accuracy", "few-shot, before", "before", "best epoch", "after")
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


@overload
def ask(  # type: ignore[overload-overlap]
    model: Model,
    prompts: str,
    *,
    chat: bool = ...,
    system: str | None = ...,
    raw: bool = ...,
    temperature: float | None = ...,
    top_k: int | None = ...,
    samples: int | None = ...,
    max_new_tokens: int | None = ...,
    stop: Sequence[str] = ...,
    logprobs: int | None = ...,
    seed: int | None = ...,
    threads: int | None = ...,
    quiet: bool = ...,
) -> Answer: ...
@overload
def ask(
    model: Model,
    prompts: Sequence[str],
    *,
    chat: bool = ...,
    system: str | None = ...,
    raw: bool = ...,
    temperature: float | None = ...,
    top_k: int | None = ...,
    samples: int | None = ...,
    max_new_tokens: int | None = ...,
    stop: Sequence[str] = ...,
    logprobs: int | None = ...,
    seed: int | None = ...,
    threads: int | None = ...,
    quiet: bool = ...,
) -> list[Answer]: ...


def ask(
    model: Model,
    prompts: str | Sequence[str],
    *,
    chat: bool = False,
    system: str | None = None,
    raw: bool = False,
    temperature: float | None = None,
    top_k: int | None = None,
    samples: int | None = None,
    max_new_tokens: int | None = None,
    stop: Sequence[str] = (),
    logprobs: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
    quiet: bool = True,
) -> Answer | list[Answer]:
    """The model's answer to a prompt, or to each of several: `str(answer)` is its text.

    The model of a run is asked with the prompt template that it was trained with; `raw` continues the prompt as it
    stands. `chat`, or a `system` message, uses the model's chat template.
    """
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    args = _options(
        chat=chat,
        system=system,
        raw=raw,
        temperature=temperature,
        top_k=top_k,
        samples=samples,
        max_new_tokens=max_new_tokens,
        stop=list(stop),
        logprobs=logprobs,
        seed=seed,
        threads=threads,
    )
    with tempfile.TemporaryDirectory(prefix="unforget-") as scratch:
        file = Path(scratch, "prompts.jsonl")
        file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in given), encoding="utf-8")
        stdout = _run("ask", [*args, f"--prompts={file}", "--", os.fspath(model)], quiet=quiet)
    answers = [from_json(Answer, row) for row in json_lines(stdout)]
    return answers[0] if isinstance(prompts, str) else answers


def score(model: Model, rows: Scored, *, threads: int | None = None, quiet: bool = True) -> list[Score]:
    """The log-probability (nats) of each completion after its prompt.

    `rows` are pairs of prompt and completion, or dicts or a table with the columns `prompt` and `completion`.
    """
    pairs = [_prompt_and_completion(row, number) for number, row in enumerate(_rows(rows), 1)]
    with tempfile.TemporaryDirectory(prefix="unforget-") as scratch:
        file = Path(scratch, "rows.jsonl")
        lines = [json.dumps({"prompt": prompt, "completion": completion}) + "\n" for prompt, completion in pairs]
        file.write_text("".join(lines), encoding="utf-8")
        stdout = _run("score", [*_options(threads=threads), "--", _model(model), str(file)], quiet=quiet)
    return [Score.from_json(row) for row in json_lines(stdout)]


def _prompt_and_completion(row: Any, number: int) -> tuple[str, str]:
    """The prompt and the completion of row `number`: a pair, or a mapping with these keys."""
    texts = [row.get("prompt"), row.get("completion")] if isinstance(row, Mapping) else row
    if isinstance(texts, (tuple, list)) and all(isinstance(text, str) for text in texts):
        with suppress(ValueError):
            prompt, completion = texts
            return prompt, completion
    raise UsageError(
        f"row {number} is not a prompt with a completion: {row!r:.100}",
        'give `(prompt, completion)` or `{"prompt": ..., "completion": ...}`, both text',
        exit_code=2,
    )


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
    set: Mapping[str, Any] | None = None,
    baseline: Pathlike | None = None,
    control: bool = False,
    force: bool = False,
    keep_checkpoints: bool = False,
    watch: bool = False,
    seed: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    quiet: bool = False,
    on_metrics: OnMetrics | None = None,
    **config: Unpack[ConfigKeys],
) -> Run:
    """Fine-tune a model on new facts, measure what it forgot, and write the run directory `out`.

    `model` may also be a config file (`experiment.toml`). Every key of the config is a keyword argument:
    `num_epochs=8, lora={"r": 8}` (`lambda_` for `lambda`). `epochs` and `lr` are short for `num_epochs` and
    `learning_rate`; `set` takes the keys with their sections: `set={"train.num_epochs": 8}`. Facts given as rows are
    written next to the run directory (`OUT.learn.jsonl`), where `resume` reads them. `control` trains an Only Known
    run first, in `OUT-only-known`. `on_metrics` is called with each row of `metrics.jsonl` as it is written, such as a
    logger of `unforget.loggers`.

    Raises `OverBudget` if more than `budget` percentage points were forgotten (the model is saved, and `error.run` is
    the run), and `Interrupted` on Ctrl-C, after a checkpoint has been written.
    """
    run = Run(Path(out))
    sets = ("learn", "keep", "held", "validation")
    rows = {name: run.path.with_name(f"{run.path.name}.{name}.jsonl") for name in sets}
    if config.get("validation") is not None:
        config["validation"] = _files(config["validation"], rows["validation"])
    args = _options(
        out=run.path,
        learn=_files(learn, rows["learn"]),
        keep=_files(keep, rows["keep"]),
        held=_files(held, rows["held"]),
        method=method,
        epochs=epochs,
        lr=lr,
        # The program knows the names of other tools too, and says what is meant by an unknown one.
        set=[
            f"{key}={_toml(value)}"
            for key, value in [*((KEYS.get(name, name), value) for name, value in config.items()), *(set or {}).items()]
            if value is not None
        ],
        baseline=baseline,
        control=control,
        force=force,
        keep_checkpoints=keep_checkpoints,
        watch=watch,
        seed=seed,
        device=device,
        threads=threads,
    )
    return _write_run(run, "tune", [*args, "--", _model(model)], quiet=quiet, on_metrics=on_metrics)


def resume(
    run: Pathlike,
    *,
    keep_checkpoints: bool = False,
    watch: bool = False,
    threads: int | None = None,
    quiet: bool = False,
    on_metrics: OnMetrics | None = None,
) -> Run:
    """Continue an interrupted run from its newest complete checkpoint. The result is bitwise identical.

    A finished run is left unchanged. `on_metrics`: as for `tune`, for the rows that are added.
    """
    resumed = Run(Path(run))
    args = _options(keep_checkpoints=keep_checkpoints, watch=watch, threads=threads)
    return _write_run(resumed, "resume", [*args, "--", str(resumed.path)], quiet=quiet, on_metrics=on_metrics)


def open(run: Pathlike) -> Run:
    """The run in a directory, finished or not. Does not start the program."""
    opened = Run(Path(run))
    if not opened.path.joinpath("config.toml").is_file():
        if not opened.path.exists():
            raise UsageError(f"there is no directory `{opened.path}`", "name the `out` of `unforget.tune`", exit_code=2)
        runs = sorted(path.parent for path in opened.path.glob("*/config.toml"))[:3]
        hint = "it holds runs: open one of " + ", ".join(f"`{path}`" for path in runs) if runs else None
        raise UsageError(f"`{opened.path}` is not a run directory: it has no config.toml", hint, exit_code=2)
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
    runs: Pathlike | Sequence[Pathlike],
    *,
    out: Pathlike | None = None,
    bundle: Pathlike | None = None,
    quiet: bool = False,
) -> Path:
    """Write a self-contained HTML page about runs, and an archive of its data if `bundle` is given.

    Without `out` the page is `report.html` in the first run's directory. Returns its path.
    """
    run_list = [runs] if isinstance(runs, (str, os.PathLike)) else runs
    out = Path(os.fspath(run_list[0])) / "report.html" if out is None and run_list else out
    args = _options(out=out, bundle=bundle)
    _run("report", [*args, "--", *(os.fspath(run) for run in run_list)], quiet=quiet)
    return Path(out or "report.html")


def export(
    run: Model,
    *,
    out: Pathlike,
    to: Literal["hf", "gguf", "peft", "lm-eval"] = "hf",
    dtype: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] | None = None,
    force: bool = False,
    push: str | None = None,
    private: bool = False,
    quiet: bool = False,
) -> Path:
    """Write a model, or the model of a run, for transformers (`hf`), llama.cpp and Ollama (`gguf`) or PEFT.

    `lm-eval` writes a task with the held-out facts of a run, for lm-evaluation-harness. `push="owner/name"` also
    uploads the directory to the Hugging Face hub, with the token of `HF_TOKEN` or `hf auth login`.
    """
    args = _options(to=to, out=out, dtype=dtype, force=force, push=push, private=private)
    _run("export", [*args, "--", os.fspath(run)], quiet=quiet)
    return Path(out)


def _model(model: Model) -> str:
    """The MODEL argument; for a finished run, its model directory."""
    tuned = Path(model, "model")
    return str(tuned) if tuned.is_dir() else os.fspath(model)


def _write_run(run: Run, command: str, args: Sequence[str], *, quiet: bool, on_metrics: OnMetrics | None = None) -> Run:
    """Run a command that writes `run`. An exception gets the run as its `run`, if the directory was created."""
    metrics = run.path / "metrics.jsonl"
    follower = Follower(metrics, on_metrics, skip_existing=command == "resume") if on_metrics else nullcontext()
    try:
        with follower:
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
    rows = _rows(facts)
    if not all(isinstance(row, Mapping) for row in rows):
        return [os.fspath(file) for file in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            # An empty cell of a DataFrame is NaN, which is not equal to itself.
            present = {name: value for name, value in row.items() if not _is_missing(value)}
            file.write(json.dumps(present, ensure_ascii=False, default=_plain) + "\n")
    return [str(path)]


def _is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, or a NaN, which is not equal to itself."""
    return value is None or (isinstance(value, float) and value != value)  # noqa: PLR0124


def _plain(value: Any) -> Any:
    """A number or an array of numpy as a value of Python."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"not a JSON value: {value!r}")


def _rows(facts: Any) -> Sequence[Any]:
    """The rows of a list or a table."""
    if isinstance(facts, Sequence) and not isinstance(facts, str):
        return facts
    for method, args in (
        ("to_pylist", ()),  # pyarrow.Table
        ("to_dicts", ()),  # polars.DataFrame
        ("to_list", ()),  # datasets.Dataset
        ("to_dict", ("records",)),  # pandas.DataFrame
    ):
        if hasattr(facts, method):
            rows: Sequence[Any] = getattr(facts, method)(*args)
            return rows
    raise TypeError(f"not rows: {type(facts).__name__}; give a list of rows, or a table")


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
