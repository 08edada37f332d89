"""Each exit code of the program as an exception."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import LLAMA, NEW, OLD, ROOT, rows

import unforget

ENDLESS = {"data.audit": False, "train.num_epochs": 1_000_000}


def test_wrong_input_is_a_usage_error_with_the_programs_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(unforget.UsageError) as caught:
        unforget.audit(LLAMA, tmp_path / "no.tsv")
    assert caught.value.exit_code == 2
    assert "no.tsv" in caught.value.message
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("give a .tsv")
    assert str(caught.value).endswith("hint: " + caught.value.hint)
    # It is reported once, by the exception.
    assert capsys.readouterr().err == ""


def test_a_misspelt_key_is_a_usage_error_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(unforget.UsageError, match="did you mean") as caught:
        unforget.tune(LLAMA, learn=rows(NEW), out=tmp_path / "run", set={"train.epoch": 1}, quiet=True)
    assert caught.value.run is None
    assert not (tmp_path / "run").exists()


def test_messages_name_arguments_as_they_were_given(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(unforget.UsageError, match="`num_train_epochs=2`: unknown key"):
        unforget.tune(LLAMA, learn=rows(NEW), out=out, num_train_epochs=2, quiet=True)  # type: ignore[call-arg]
    out.mkdir()
    (out / "a").touch()
    with pytest.raises(unforget.UsageError) as caught:
        unforget.tune(LLAMA, learn=rows(NEW), out=out, quiet=True)
    assert caught.value.hint == "give another `out`, or `force=True` to write into it"


def test_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(unforget.UsageError, match="bogus"):
        unforget.call("audit", LLAMA, "--bogus")
    with pytest.raises(unforget.UsageError, match="not a run directory"):
        unforget.open(tmp_path)
    with pytest.raises(unforget.UsageError, match="there is no directory"):
        unforget.open(tmp_path / "none")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").touch()
    with pytest.raises(unforget.UsageError) as caught:
        unforget.open(tmp_path)
    assert caught.value.hint == f"it holds runs: open one of `{tmp_path / 'run'}`"


def test_a_broken_model_fails_the_work(tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((LLAMA / file).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(unforget.WorkFailed, match="broken model file") as caught:
        unforget.audit(tmp_path, rows(OLD))
    assert caught.value.exit_code == 1
    assert caught.value.hint


def test_over_budget_has_the_run(knows: unforget.Run, tmp_path: Path) -> None:
    with pytest.raises(unforget.OverBudget, match="over the budget of 0 pp") as caught:
        unforget.tune(
            knows,
            learn=rows(NEW),
            held=rows(OLD),
            out=tmp_path / "run",
            method="sft",
            budget=0,
            set={"data.audit": False, "train.learning_rate": 0.02, "train.num_epochs": 10},
            quiet=True,
        )
    run = caught.value.run
    assert run is not None
    assert run.result is not None
    assert run.result.within_budget is False
    assert (run.model / "model.safetensors").is_file()
    assert caught.value.exit_code == 3


def test_a_killed_program_fails_the_work(tmp_path: Path) -> None:
    script = tmp_path / "killed"
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNFORGET_BIN", str(script))
        with pytest.raises(unforget.WorkFailed, match="ended by signal 9") as caught:
            unforget.resume(tmp_path)
    assert caught.value.exit_code == -9


def test_a_missing_program_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFORGET_BIN", str(tmp_path / "none"))
    with pytest.raises(unforget.ProgramNotFound, match="UNFORGET_BIN"):
        unforget.audit(LLAMA)
    monkeypatch.delenv("UNFORGET_BIN")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="install the wheel"):
        unforget.audit(LLAMA)


def test_ctrl_c_is_forwarded_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def interrupt() -> None:
        _wait_for(out / "metrics.jsonl")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(unforget.Interrupted) as caught:
        unforget.tune(LLAMA, learn=rows(NEW), out=out, method="sft", set=ENDLESS, threads=1, quiet=True)
    assert caught.value.exit_code == 130
    assert caught.value.hint is not None
    assert "unforget.resume(" in caught.value.hint
    run = caught.value.run
    assert run is not None
    assert not run.done
    assert run.result is None
    assert run.facts == ()
    assert "not finished" in run._repr_html_()
    assert list((out / "checkpoints").iterdir())
    config = out / "config.toml"
    config.write_text(config.read_text().replace("epochs = 1000000", "epochs = 3"))
    assert unforget.resume(run, threads=1, quiet=True).done


def test_ctrl_c_at_a_terminal_reaches_the_program_once(tmp_path: Path) -> None:
    """The whole process group gets the signal, and the program writes a checkpoint: it received one signal, not two."""
    out = tmp_path / "run"
    code = (
        "import sys, unforget\n"
        f"learn, out, settings = {rows(NEW)!r}, {str(out)!r}, {ENDLESS!r}\n"
        f"try: unforget.tune({str(LLAMA)!r}, learn=learn, out=out, method='sft', set=settings, threads=1)\n"
        "except unforget.Interrupted as error: print(error.run.path.name, error.exit_code)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    )
    _wait_for(out / "metrics.jsonl")
    os.killpg(child.pid, signal.SIGINT)
    stdout, stderr = child.communicate(timeout=60)
    assert stdout == "run 130\n", stderr
    assert "interrupted: ending " in stderr
    assert list((out / "checkpoints").iterdir())


def test_ctrl_c_in_work_that_cannot_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "slow"
    script.write_text(f"#!/bin/sh\ntrap 'exit 130' INT\ntouch {tmp_path}/begun\nwhile :; do sleep 0.05; done\n")
    script.chmod(0o755)
    monkeypatch.setenv("UNFORGET_BIN", str(script))

    def interrupt() -> None:
        _wait_for(tmp_path / "begun")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(unforget.Interrupted, match="interrupted") as caught:
        unforget.call("audit")
    assert caught.value.run is None


def _wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.05)
    time.sleep(0.2)
