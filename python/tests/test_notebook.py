"""The example runs from top to bottom, on a tiny model; `UNFORGET_NOTEBOOK_MODEL` names another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import LLAMA, ROOT

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
for name in ("ipykernel", "matplotlib", "pandas"):
    pytest.importorskip(name, reason=f"{name} is not installed")


def test_first_steps_run_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", os.environ.get("UNFORGET_NOTEBOOK_MODEL", str(LLAMA)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "python"))
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "python" / "examples" / "first_steps.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {kind for cell in notebook.cells for output in cell.get("outputs", ()) for kind in output.get("data", ())}
    assert {"text/html", "image/svg+xml", "image/png"} <= shown
    assert (next(tmp_path.glob("first-steps-*")) / "report.html").is_file()
