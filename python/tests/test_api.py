"""The functions, with the program and a tiny model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, LLAMA, NEW, OLD, rows

import unforget
from unforget import _api, _process, _tables

pd = pytest.importorskip("pandas", reason="pandas is not installed")
pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")


def test_an_audit_has_label_fractions_and_every_fact(knows: unforget.Run, tmp_path: Path) -> None:
    audit = unforget.audit(knows, rows(OLD + NEW), num_prompts=1, shots=0, threads=1, quiet=True)
    assert audit.overall.facts == 9
    assert audit.relations["P17"] == audit.overall
    assert audit.overall.highly_known == pytest.approx(sum(f.label == "HighlyKnown" for f in audit.facts) / 9)
    assert [fact.subject for fact in audit.facts] == [subject for subject, _ in OLD + NEW]
    assert all(fact.label == "HighlyKnown" and fact.greedy_correct == (True,) for fact in audit.facts[:4])
    assert audit.settings["shots"] == 0
    assert audit.path is None
    assert audit.plot.startswith("<svg")
    assert not list(tmp_path.glob("*.jsonl"))


def test_an_audit_is_written_to_out(tmp_path: Path) -> None:
    facts = tmp_path / "facts.tsv"
    facts.write_text("subject\trelation\tobject\nRome\tP17\tItaly\nBonn\tP17\tGermany\n")
    audit = unforget.audit(LLAMA, facts, out=tmp_path / "audit", num_prompts=2, shots=1, threads=1, quiet=True)
    assert audit.path == tmp_path / "audit"
    assert (tmp_path / "audit" / "facts.jsonl").is_file()
    assert len(audit.facts[0].answers) == 2


def test_a_run_is_read_from_its_directory(forgets: unforget.Run) -> None:
    run = unforget.open(forgets.path)
    assert run == forgets
    assert run.done
    assert run.result is not None
    assert dataclasses.asdict(run.result.counts) == json.loads((run.path / "result.json").read_text())["counts"]
    assert run.result.accuracy["held"].start == 1.0
    assert run.result.forgetting_pp is not None
    assert run.result.forgetting_pp > 0
    assert len(run.facts) == 9
    assert {fact.split for fact in run.facts} == {"unknown", "held"}
    assert run.evaluations[0].epoch == 0
    assert run.evaluations[0].held == 1.0
    assert run.evaluations[0].known is None
    assert len(run.evaluations) == run.result.epochs + 1
    assert len(run.metrics("step")) == run.result.steps
    assert run.environment["device"] == "cpu"
    assert (run.model / "model.safetensors").is_file()
    # Rows are written next to the run, for resume.
    assert len(run.path.with_name("run.learn.jsonl").read_text().splitlines()) == len(NEW)
    assert run.resume(quiet=True) == run


def test_a_run_is_compared(forgets: unforget.Run, knows: unforget.Run) -> None:
    comparison = forgets.compare()
    assert comparison.counts.learned == len(NEW)
    assert comparison.counts.forgotten > 0
    forgotten = comparison.with_outcome("forgotten")
    assert len(forgotten) == comparison.counts.forgotten
    assert all(fact.correct_before and not fact.correct_after and fact.split == "held" for fact in forgotten)
    assert unforget.compare([knows, forgets])[1] == comparison
    models = unforget.compare(knows, forgets, rows(OLD), threads=1, quiet=True)
    # Two models are asked behind few-shot prompts, which this tiny model was not trained on.
    assert [fact.subject for fact in models.facts] == [subject for subject, _ in OLD]
    assert models.facts[0].split is None


def test_a_gate_passes_or_fails(forgets: unforget.Run, knows: unforget.Run, tmp_path: Path) -> None:
    held = unforget.gate(forgets, forgets, threads=1, quiet=True)
    assert held.passed
    assert held.forgotten_pp == 0
    assert held.budget == 1
    # A model that does not know the facts.
    failed = unforget.gate(LLAMA, _fresh(knows, tmp_path), budget=5, junit=tmp_path / "gate.xml", threads=1, quiet=True)
    assert not failed.passed
    assert failed.forgotten_pp == 100
    assert (tmp_path / "gate.xml").is_file()
    assert "over the budget" in failed._repr_html_()


def _fresh(knows: unforget.Run, tmp_path: Path) -> unforget.Run:
    settings = {**FAST, "train.num_epochs": 1, "train.learning_rate": 1e-9}
    learn, out = rows(NEW), tmp_path / "fresh"
    return unforget.tune(knows, learn=learn, held=rows(OLD), out=out, method="sft", set=settings, threads=1, quiet=True)


def test_a_forecast_ranks_the_held_facts(knows: unforget.Run) -> None:
    forecast = unforget.forecast(knows, learn=rows(NEW), held=rows(OLD), threads=1, quiet=True)
    risks = [fact.risk for fact in forecast.facts]
    assert risks == sorted(risks, reverse=True)
    assert {fact.subject for fact in forecast.facts} == {subject for subject, _ in OLD}
    assert forecast.facts[0].nearest[0].subject in dict(NEW)
    assert list(forecast.to_pandas().columns) == [
        "subject",
        "relation",
        "question",
        "object",
        "risk",
        "log_odds",
        "warning",
    ]


def test_a_report_and_an_export_are_written(forgets: unforget.Run, tmp_path: Path) -> None:
    page = unforget.report([forgets], out=tmp_path / "page.html", bundle=tmp_path / "page.zip", quiet=True)
    assert page.read_text().startswith("<!")
    assert forgets.report(tmp_path / "again.html").is_file()
    model = forgets.export(tmp_path / "hf")
    assert (model / "README.md").is_file()
    gguf = unforget.export(forgets, to="gguf", dtype="f32", out=tmp_path / "gguf")
    assert (gguf / "model.gguf").is_file()


def test_any_command_can_be_called(forgets: unforget.Run, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Q: a\\nA:"}\n{"prompt": "Q: b\\nA:"}\n')
    answers = unforget.call("ask", forgets, f"--prompts={prompts}", "--max-new-tokens=4", quiet=True)
    assert [answer["prompt"] for answer in answers] == ["Q: a\nA:", "Q: b\nA:"]


@pytest.mark.parametrize("kind", ["audit", "run", "comparison", "gate"])
def test_tables_have_one_row_per_fact(kind: str, forgets: unforget.Run) -> None:
    makers: dict[str, Any] = {
        "audit": lambda: unforget.audit(LLAMA, rows(OLD + NEW), num_prompts=2, shots=1, threads=1, quiet=True),
        "run": lambda: forgets,
        "comparison": forgets.compare,
        "gate": lambda: unforget.gate(forgets, forgets, threads=1, quiet=True),
    }
    table = makers[kind]()
    frame, arrow = table.to_pandas(), table.to_arrow()
    assert len(frame) == arrow.num_rows == 9
    assert list(frame.columns) == arrow.column_names
    assert list(frame["object"]) == arrow.column("object").to_pylist() == [fact.object for fact in table.facts]


def test_columns_have_types_without_rows() -> None:
    none = unforget.Comparison(("run",), unforget.Counts(0, 0, 0, 0, 0, 0), ())
    assert list(none.to_pandas().columns) == none.to_arrow().column_names
    assert none.to_arrow().schema.field("correct_after").type == pa.bool_()
    assert none.to_arrow().schema.field("split").type == pa.string()


def test_facts_from_a_data_frame(tmp_path: Path) -> None:
    frame = pd.DataFrame({"subject": ["Ürümqi"], "relation": ["P17"], "object": ["China"], "aliases": [None]})
    frame.loc[1] = ["x\u2028y", "P17", "Italy", ["Italia"]]
    (path,) = _api._files(frame, tmp_path / "deeper" / "f.jsonl")
    assert _tables.read_lines(Path(path)) == [
        {"subject": "Ürümqi", "relation": "P17", "object": "China"},
        {"subject": "x\u2028y", "relation": "P17", "object": "Italy", "aliases": ["Italia"]},
    ]
    audit = unforget.audit(LLAMA, frame, num_prompts=1, shots=0, threads=1, quiet=True)
    assert audit.facts[1].subject == "x\u2028y"


def test_settings_are_written_as_toml() -> None:
    value = {"on": True, "n": 3, "lr": 1e-7, "name": 'a "b"\n', "list": [1, "x"], "odd key": {"k": Path("p")}}
    assert _api._toml(value) == (
        '{on = true, n = 3, lr = 1e-07, name = "a \\"b\\"\\n", list = [1, "x"], "odd key" = {k = "p"}}'
    )
    with pytest.raises(TypeError, match="not a TOML value: None"):
        _api._toml(None)


@pytest.mark.parametrize("name", ["facts", "answers"])
def test_notebook_output_is_escaped(name: str) -> None:
    bad = "<script>alert(1)</script>"
    counts = unforget.Counts(1, 0, 0, 1, 0, 0)
    fact = unforget.ComparedFact(
        "P17", bad, bad, bad, bad, bad, correct_before=True, correct_after=False, outcome="forgotten"
    )
    fractions = unforget.LabelFractions(1, 1.0, 0.0, 0.0, 0.0)
    shown: dict[str, list[Any]] = {
        "facts": [
            unforget.Audit(bad, fractions, {bad: fractions}, (), {}, (), 0.0, "", None),
            unforget.Run(Path(bad)),
        ],
        "answers": [
            unforget.Comparison((bad,), counts, (fact,)),
            unforget.Gate(
                passed=False,
                budget=1.0,
                split="held",
                forgotten_pp=2.0,
                interval=None,
                facts=(unforget.GatedFact("held", bad, bad, bad, bad, bad, correct_before=True, correct_now=False),),
            ),
            unforget.Forecast((unforget.AtRiskFact(bad, bad, bad, bad, 0.5, (unforget.Neighbour(bad, bad, 1.0),)),)),
        ],
    }
    for value in shown[name]:
        html = value._repr_html_()
        assert "<script" not in html
        assert "&lt;script&gt;" in html


def test_a_notebook_shows_a_run(forgets: unforget.Run) -> None:
    html = forgets._repr_html_()
    assert "sft on" in html
    assert "held" in html
    assert f"forgotten {forgets.compare().counts.forgotten}" in forgets.compare()._repr_html_()


def test_progress_is_forwarded_unless_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], knows: unforget.Run
) -> None:
    unforget.audit(knows, rows(OLD), num_prompts=1, shots=0, threads=1)
    assert "audit 4/4" in capsys.readouterr().err
    options = {"data.audit": False}
    run = unforget.tune(
        LLAMA,
        learn=rows(NEW),
        out=tmp_path / "q",
        method="sft",
        epochs=1,
        lr=0.01,
        batch_size=2,
        set=options,
        threads=1,
        quiet=True,
    )
    assert run.result is not None
    assert run.result.epochs == 1
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


@pytest.mark.parametrize("closed", [True, False])
def test_a_closed_stderr_does_not_stop_the_program(
    closed: bool, monkeypatch: pytest.MonkeyPatch, knows: unforget.Run, tmp_path: Path
) -> None:
    gone = (tmp_path / "gone").open("w")
    gone.close()
    monkeypatch.setattr("sys.stderr", gone if closed else None)
    assert unforget.audit(knows, rows(OLD), num_prompts=1, shots=0, threads=1).overall.facts == 4


def test_the_environment_variable_names_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "mine"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    monkeypatch.setenv("UNFORGET_BIN", str(fake))
    assert _process.program() == str(fake)
    monkeypatch.delenv("UNFORGET_BIN")
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    fake.rename(tmp_path / "unforget")
    assert _process.program() == str(tmp_path / "unforget")
