"""The callback: its logic with a mock trainer, and with a tiny model that `transformers` trains for two epochs."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import LLAMA, NEW, OLD, ROOT, rows

import unforget

HAS_TRAINER = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "accelerate"))
needs_trainer = pytest.mark.skipif(not HAS_TRAINER, reason="torch, transformers and accelerate are not installed")


@pytest.fixture
def trl(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`unforget.trl`, with a stub of the base class if transformers is not installed."""
    if not HAS_TRAINER:
        stub = types.ModuleType("transformers")
        stub.TrainerCallback = object  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "transformers", stub)
        monkeypatch.delitem(sys.modules, "unforget.trl", raising=False)
    return importlib.import_module("unforget.trl")


class Saved:
    """A mock model that saves the weights of a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save_pretrained(self, to: Path) -> None:
        to.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(self.directory / name, to)


class Tokenizer:
    def save_pretrained(self, to: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(LLAMA / name, to)


class State(types.SimpleNamespace):
    is_world_process_zero = True


def state() -> State:
    return State(global_step=0, epoch=0.0, log_history=[])


def callback_of(trl: Any, **options: Any) -> Any:
    return trl.ForgettingCallback(rows(OLD), num_prompts=1, shots=0, threads=1, **options)


def test_forgotten_facts_are_logged_and_printed(
    trl: Any, knows: unforget.Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    callback, at = callback_of(trl, scratch=str(tmp_path)), state()
    trained = {"processing_class": Tokenizer()}
    callback.on_train_begin(None, at, None, model=Saved(knows.model), **trained)
    at.global_step, at.epoch = 5, 1.0
    callback.on_step_end(None, at, None, model=Saved(knows.model), **trained)
    callback.on_epoch_end(None, at, None, model=Saved(knows.model), **trained)
    at.global_step, at.epoch = 10, 2.0
    callback.on_epoch_end(None, at, None, model=Saved(LLAMA), **trained)
    callback.on_train_end(None, at, None, model=Saved(LLAMA), **trained)
    assert [(probe.step, probe.num_retained, probe.num_forgotten) for probe in callback.probes] == [
        (5, 4, 0),
        (10, 0, 4),
    ]
    assert [fact.subject for fact in callback.probes[1].forgotten] == [subject for subject, _ in OLD]
    assert at.log_history == [
        {"forgetting/retained": 4, "forgetting/forgotten": 0, "epoch": 1.0, "step": 5},
        {"forgetting/retained": 0, "forgetting/forgotten": 4, "epoch": 2.0, "step": 10},
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "forgetting: knows 4 of 4 facts before training"
    assert lines[1] == "forgetting: epoch 1, step 5: forgot 0 of 4 known facts"
    assert lines[2].startswith("forgetting: epoch 2, step 10: forgot 4 of 4 known facts: Lille (France; now ")
    assert lines[2].endswith(", 1 more")
    # The saved models and the caches of their audits are removed.
    assert not list(tmp_path.glob("unforget-*"))
    assert not (tmp_path / "cache").exists()


def test_probes_every_n_steps_and_at_the_end(trl: Any, knows: unforget.Run) -> None:
    callback, at = callback_of(trl, every=2, quiet=True, base=knows, tokenizer=Tokenizer()), state()
    callback.on_train_begin(None, at, None, model=Saved(LLAMA))
    for step in range(1, 6):
        at.global_step = step
        callback.on_step_end(None, at, None, model=Saved(LLAMA))
    callback.on_epoch_end(None, at, None, model=Saved(LLAMA))
    callback.on_train_end(None, at, None, model=Saved(LLAMA))
    assert [(probe.step, probe.num_forgotten) for probe in callback.probes] == [(2, 4), (4, 4), (5, 4)]


def test_an_attached_trainer_logs(trl: Any, knows: unforget.Run) -> None:
    class Trainer:
        def __init__(self) -> None:
            self.callbacks: list[Any] = []
            self.logged: list[dict[str, Any]] = []

        def add_callback(self, callback: Any) -> None:
            self.callbacks.append(callback)

        def log(self, logs: dict[str, Any]) -> None:
            self.logged.append(logs)

    trainer, at = Trainer(), state()
    callback = callback_of(trl, quiet=True).attach(trainer)
    assert trainer.callbacks == [callback]
    callback.on_train_begin(None, at, None, model=Saved(knows.model), processing_class=Tokenizer())
    callback.on_epoch_end(None, at, None, model=Saved(LLAMA), processing_class=Tokenizer())
    assert trainer.logged == [{"forgetting/retained": 0, "forgetting/forgotten": 4}]
    assert at.log_history == []


def test_errors_are_raised_at_the_beginning_and_warnings_later(trl: Any, knows: unforget.Run) -> None:
    callback, at = callback_of(trl, quiet=True), state()
    with pytest.raises(ValueError, match="no tokenizer"):
        callback.on_train_begin(None, at, None, model=Saved(knows.model))
    with pytest.raises(unforget.UsageError):
        trl.ForgettingCallback("no.tsv").on_train_begin(None, at, None, model=Saved(knows.model), tokenizer=Tokenizer())
    with pytest.raises(ValueError, match="every"):
        trl.ForgettingCallback("no.tsv", every=0)
    callback.on_train_begin(None, at, None, model=Saved(knows.model), tokenizer=Tokenizer())
    with pytest.warns(UserWarning, match="forgetting was not measured at step 0"):
        callback.on_epoch_end(None, at, None, model=Saved(ROOT / "none"), tokenizer=Tokenizer())
    assert callback.probes == []


def test_other_processes_do_nothing(trl: Any) -> None:
    callback, at = callback_of(trl), state()
    at.is_world_process_zero = False
    callback.on_train_begin(None, at, None, model=None)
    callback.on_epoch_end(None, at, None, model=None)
    assert callback.before is None
    assert callback.probes == []


def prepared_tokenizer() -> Any:
    """The tiny model's tokenizer with a padding token. Also limits PyTorch to one thread."""
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(str(LLAMA))
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def arguments(out: Path) -> dict[str, Any]:
    """Common trainer arguments: one row per step, a learning rate that causes forgetting, no logging or saving."""
    return {
        "output_dir": str(out),
        "per_device_train_batch_size": 1,
        "learning_rate": 0.02,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def trainer_of(model: Any, out: Path, **options: Any) -> Any:
    """A Trainer for the new facts."""
    from transformers import Trainer, TrainingArguments

    tokenizer = prepared_tokenizer()

    def example(subject: str, country: str) -> dict[str, list[int]]:
        ids = tokenizer(f"Q: Which country is {subject} located in?\nA: {country}\n")["input_ids"]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids}

    return Trainer(
        model=model,
        args=TrainingArguments(**arguments(out), num_train_epochs=2, logging_steps=100),
        train_dataset=[example(*fact) for fact in NEW],
        processing_class=tokenizer,
        **options,
    )


@needs_trainer
def test_transformers_trains_a_model_that_forgets(
    trl: Any, knows: unforget.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(knows.model))
    callback = callback_of(trl)
    trainer = trainer_of(model, tmp_path, callbacks=[callback])
    trainer.train()
    assert [probe.epoch for probe in callback.probes] == [1, 2]
    assert all(probe.num_known == 4 == probe.num_retained + probe.num_forgotten for probe in callback.probes)
    assert callback.probes[-1].num_forgotten > 0
    logged = [line for line in trainer.state.log_history if "forgetting/forgotten" in line]
    assert [line["forgetting/forgotten"] for line in logged] == [probe.num_forgotten for probe in callback.probes]
    assert "of 4 known facts: " in capsys.readouterr().out
    # The last probe equals an audit of the saved model.
    trainer.save_model(str(tmp_path / "end"))
    end = unforget.audit(tmp_path / "end", rows(OLD), num_prompts=1, shots=0, threads=1, quiet=True)
    assert sum(fact.label == "HighlyKnown" for fact in end.facts) == callback.probes[-1].num_retained


@needs_trainer
@pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="peft is not installed")
def test_adapters_are_evaluated_merged(trl: Any, knows: unforget.Run, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(knows.model))
    config = LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj", "down_proj", "up_proj"])
    callback = callback_of(trl, quiet=True)
    trainer = trainer_of(get_peft_model(model, config), tmp_path)
    callback.attach(trainer)
    trainer.train()
    assert [probe.num_known for probe in callback.probes] == [4, 4]
    assert callback.probes[-1].num_forgotten > 0
    # Only the copy was merged.
    assert hasattr(trainer.model, "merge_and_unload")
    assert any("lora_A" in name for name, _ in trainer.model.named_parameters())


@needs_trainer
@pytest.mark.skipif(not importlib.util.find_spec("trl"), reason="trl is not installed")
def test_trl_accepts_the_callback(trl: Any, knows: unforget.Run, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = prepared_tokenizer()
    callback = callback_of(trl, every=2, quiet=True)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(str(knows.model)),
        args=SFTConfig(**arguments(tmp_path), max_steps=4, bf16=False),
        train_dataset=Dataset.from_list([{"text": f"Q: Where is {subject}?\nA: {place}\n"} for subject, place in NEW]),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    assert [probe.step for probe in callback.probes] == [2, 4]
    assert callback.probes[-1].num_forgotten > 0
