"""Asking, scoring and conversations; typed settings; metrics while a run is written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, LLAMA, NEW, ROOT, rows

import unforget
from unforget import _config
from unforget.loggers import MLflowLogger, WandbLogger, named_numbers

QUESTION = "Which country is Lille located in?"


def test_a_run_is_asked_as_it_was_trained(knows: unforget.Run) -> None:
    answer = unforget.ask(knows, QUESTION, threads=1)
    assert str(answer) == "France"
    prompt = f"Q: {QUESTION}\nA:"
    raw = unforget.ask(knows, [prompt, "x"], raw=True, stop=["\n"], logprobs=1, max_new_tokens=8, threads=1)
    assert [a.prompt for a in raw] == [prompt, "x"]
    assert raw[0].answer == " France"
    assert raw[0].tokens[0]["logprob"] < 0


def test_a_completion_is_scored(knows: unforget.Run) -> None:
    good, bad = unforget.score(knows, [(f"Q: {QUESTION}\nA:", " France"), (f"Q: {QUESTION}\nA:", " Spain")], threads=1)
    assert good.logprob > bad.logprob
    assert good.logprob == pytest.approx(sum(token.logprob for token in good.tokens), abs=1e-4)
    assert "".join(token.text for token in good.tokens) == " France"
    assert list(good.to_pandas().columns) == ["id", "text", "logprob"]

    pandas = pytest.importorskip("pandas")
    row = {"prompt": f"Q: {QUESTION}\nA:", "completion": " France", "n": 1}
    for table in ([row], pandas.DataFrame([row])):
        assert unforget.score(knows, table, threads=1) == [good]
    for wrong in ([{"prompt": "a"}], ["ab"], [("a", "b", "c")], [("a", 1)]):
        with pytest.raises(unforget.UsageError, match="row 1 is not a prompt with a completion"):
            unforget.score(knows, wrong)


def test_a_conversation_has_turns(knows: unforget.Run) -> None:
    with unforget.chat(knows, threads=1) as conversation:
        first = conversation.send(QUESTION)
        assert first == "France"
        conversation.send("And now?")
        conversation.reset()
        assert conversation.send(QUESTION) == first
        with pytest.raises(ValueError, match="one line"):
            conversation.send("a\nb")
    with unforget.chat(LLAMA) as conversation, pytest.raises(unforget.UsageError, match="no chat template"):
        conversation.send("hi")


def test_every_key_of_the_config_is_an_argument(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "python"))
    import generate_config

    text = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", "python/unforget/_config.py", "-"],
        input=generate_config.module(),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if text.returncode != 0:
        pytest.skip("ruff is not installed")
    assert text.stdout == generate_config.MODULE.read_text(), "run python/generate_config.py"

    run = unforget.tune(
        LLAMA,
        learn=rows(NEW),
        out=tmp_path / "run",
        method="sft",
        audit=False,
        num_epochs=1,
        batch_size=2,
        lora={"r": 4, "alpha": 8},
        behaviour=False,
        threads=1,
        quiet=True,
    )
    text_of = run.path.joinpath("config.toml").read_text()
    assert "num_epochs = 1\n" in text_of
    assert "r = 4\n" in text_of
    assert set(_config.KEYS) == set(_config.ConfigKeys.__annotations__)
    with pytest.raises(unforget.UsageError) as error:
        unforget.tune(LLAMA, learn=rows(NEW), out=tmp_path / "x", weight_decai=1.0, quiet=True)  # type: ignore[call-arg]
    assert error.value.hint is not None
    assert "weight_decay" in error.value.hint


class Recorder:
    """Stands in for the run of a logger."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int]] = []

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((numbers, step))


def test_metrics_reach_a_logger_while_the_run_is_written(tmp_path: Path) -> None:
    recorder = Recorder()
    settings: dict[str, Any] = {**FAST, "train.num_epochs": 2, "train.early_stopping": None}
    run = unforget.tune(
        LLAMA,
        learn=rows(NEW),
        out=tmp_path / "run",
        method="sft",
        set=settings,
        threads=1,
        quiet=True,
        on_metrics=WandbLogger(recorder),
    )
    steps = run.metrics("step")
    losses = [(numbers["train/loss"], step) for numbers, step in recorder.logged if "train/loss" in numbers]
    assert losses == [(row["loss"], row["step"]) for row in steps]
    evals = [numbers for numbers, _ in recorder.logged if "eval/accuracy/unknown" in numbers]
    assert len(evals) == len(run.evaluations)
    # The steps of a Weights & Biases run never decrease.
    assert [step for _, step in recorder.logged] == sorted(step for _, step in recorder.logged)


def test_a_logger_that_fails_does_not_stop_the_run(tmp_path: Path) -> None:
    def broken(row: dict[str, Any]) -> None:
        raise RuntimeError(row["type"])

    settings: dict[str, Any] = {**FAST, "train.num_epochs": 1, "train.early_stopping": None}
    with pytest.warns(UserWarning, match="on_metrics failed"):
        run = unforget.tune(
            LLAMA,
            learn=rows(NEW),
            out=tmp_path / "run",
            method="sft",
            set=settings,
            threads=1,
            quiet=True,
            on_metrics=broken,
        )
    assert run.done


def test_numbers_are_named_by_their_section() -> None:
    row = {"type": "eval", "epoch": 1, "step": 3, "accuracy": {"held": 0.5, "known": None}, "seconds": 1}
    assert named_numbers(row) == {"eval/epoch": 1.0, "eval/accuracy/held": 0.5, "eval/seconds": 1.0}


def test_mlflow_gets_the_numbers_of_a_run_from_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[str, str, float, int]] = []

    class Client:
        def log_metric(self, run_id: str, name: str, value: float, *, step: int) -> None:
            logged.append((run_id, name, value, step))

    active = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))
    stub = types.SimpleNamespace(active_run=lambda: active, MlflowClient=Client)
    monkeypatch.setitem(sys.modules, "mlflow", stub)
    MLflowLogger()({"type": "step", "step": 7, "loss": 0.5})
    assert logged == [("r1", "train/loss", 0.5, 7)]


def test_mlflow_itself_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with mlflow.start_run() as run:
        MLflowLogger()({"type": "eval", "step": 2, "accuracy": {"held": 0.25}})
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "eval/accuracy/held")
    assert [(metric.value, metric.step) for metric in history] == [(0.25, 2)]


def test_tables_of_other_libraries_are_facts(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    from unforget import _api

    facts = rows(NEW)
    dataset = types.SimpleNamespace(to_list=lambda: facts)
    for i, table in enumerate([pa.Table.from_pylist(facts), pd.DataFrame(facts), dataset]):
        [file] = _api._files(table, tmp_path / f"{i}.jsonl")
        assert [json.loads(line) for line in Path(file).read_text().splitlines()] == facts
    chats = pa.Table.from_pylist([{"messages": [{"role": "user", "content": "hi"}]}])
    [file] = _api._files(chats, tmp_path / "chats.jsonl")
    assert json.loads(Path(file).read_text()) == chats.to_pylist()[0]
    with pytest.raises(TypeError, match="not rows: int"):
        _api._files(3, tmp_path / "x.jsonl")


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not adopted there")
def test_a_caller_that_dies_takes_the_program_with_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    facts = tmp_path / "new.jsonl"
    facts.write_text("".join(json.dumps(row) + "\n" for row in rows(NEW)))
    code = (
        f"import unforget; unforget.tune({str(LLAMA)!r}, learn={str(facts)!r}, out={str(out)!r}, "
        "method='sft', audit=False, num_epochs=100000, behaviour=False, threads=1, quiet=True)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    caller = subprocess.Popen([sys.executable, "-c", code], env=env)
    metrics = out / "metrics.jsonl"
    deadline = time.time() + 60
    while not (metrics.is_file() and b'"step"' in metrics.read_bytes()):
        assert time.time() < deadline, "the run does not start"
        time.sleep(0.1)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    # The program writes a checkpoint and ends; the run's lock is released.
    while not any(out.joinpath("checkpoints").glob("*")):
        assert time.time() < deadline, "no checkpoint is written"
        time.sleep(0.1)
    time.sleep(1.0)
    size = metrics.stat().st_size
    time.sleep(2.0)
    assert metrics.stat().st_size == size, "the program goes on"
