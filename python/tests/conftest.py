"""Shared fixtures. `UNFORGET_BIN` names the program; the default is the one built by cargo."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "python"))

import unforget  # noqa: E402

LLAMA = ROOT / "tests" / "golden" / "llama"

OLD = [("Lille", "France"), ("Turin", "Italy"), ("Bonn", "Germany"), ("Cadiz", "Spain")]
NEW = [("Paris", "France"), ("Rome", "Italy"), ("Berlin", "Germany"), ("Oslo", "Norway"), ("Athens", "Greece")]

# Settings that train the tiny model fast, without an audit.
FAST = {
    "data.audit": False,
    "train.learning_rate": 0.01,
    "train.num_epochs": 40,
    "train.early_stopping": {"accuracy": 1.0},
}


def pytest_configure() -> None:
    # Background jobs of a shell ignore SIGINT, which some tests send.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "UNFORGET_BIN" not in os.environ and shutil.which("unforget") is None:
        built = ROOT / "target" / "release" / "unforget"
        if not built.is_file():
            pytest.exit("no program to test: run cargo build --release, or set UNFORGET_BIN", 1)
        os.environ["UNFORGET_BIN"] = str(built)


def rows(facts: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"subject": subject, "relation": "P17", "object": country} for subject, country in facts]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFORGET_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def knows(tmp_path_factory: pytest.TempPathFactory) -> unforget.Run:
    """A run whose model knows the old facts."""
    out = tmp_path_factory.mktemp("knows") / "run"
    return unforget.tune(LLAMA, learn=rows(OLD), out=out, method="sft", set=FAST, threads=1, quiet=True)


@pytest.fixture(scope="session")
def forgets(knows: unforget.Run, tmp_path_factory: pytest.TempPathFactory) -> unforget.Run:
    """A run that learned new facts and forgot old ones."""
    out = tmp_path_factory.mktemp("forgets") / "run"
    settings = {**FAST, "train.early_stopping": {"accuracy": 1.0}}
    return unforget.tune(
        knows, learn=rows(NEW), held=rows(OLD), out=out, method="sft", set=settings, threads=1, quiet=True
    )
