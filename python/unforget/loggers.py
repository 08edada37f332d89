"""Send the metrics of a run to Weights & Biases or MLflow while it trains, or afterwards.

    from unforget.loggers import WandbLogger

    unforget.tune("smollm2-135m", learn="new.tsv", out="runs/mine", on_metrics=WandbLogger())

A logger is called with each row of `metrics.jsonl`, so a finished run can be sent too: `for row in run.metrics():
logger(row)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Keys of a row that are no measurements.
_PLACES = {"type", "step"}


def named_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of `metrics.jsonl`, named `train/loss`, `eval/accuracy/held`, `final/behaviour/kl`, ..."""
    section = "train" if row["type"] == "step" else row["type"]
    return {f"{section}/{name}": value for name, value in _numbers(row) if name not in _PLACES}


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{inner}", number) for inner, number in _numbers(value))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)


class WandbLogger:
    """Logs to a Weights & Biases run: the one given, else the active one, else a new one."""

    def __init__(self, run: Any = None) -> None:
        if run is None:
            try:
                import wandb  # noqa: PLC0415
            except ImportError as error:
                raise ImportError("WandbLogger needs wandb: pip install wandb") from error
            run = wandb.run or wandb.init(project="unforget")
        self.run = run
        self._step = 0

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of a row at its step."""
        # Rows without a step belong to the last one.
        self._step = row.get("step", self._step)
        numbers = named_numbers(row)
        if numbers:
            self.run.log(numbers, step=self._step)


class MLflowLogger:
    """Logs to an MLflow run: the one with `run_id`, else the active one, else a new one."""

    def __init__(self, run_id: str | None = None) -> None:
        try:
            import mlflow  # noqa: PLC0415
        except ImportError as error:
            raise ImportError("MLflowLogger needs mlflow: pip install mlflow") from error
        if run_id is None:
            run_id = (mlflow.active_run() or mlflow.start_run()).info.run_id
        # The active run belongs to a thread, and the metrics come from another one.
        self.run_id = run_id
        self._client = mlflow.MlflowClient()
        self._step = 0

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of a row at its step."""
        self._step = row.get("step", self._step)
        for name, value in named_numbers(row).items():
            self._client.log_metric(self.run_id, name, value, step=self._step)
