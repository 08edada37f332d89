"""Fine-tune language models on new facts without making them forget the old ones, and prove it fact by fact.

A thin layer over the program `unforget`, which does the work and comes with this package:

    import unforget

    known = unforget.audit("smollm2-135m", "known.tsv")
    run = unforget.tune("smollm2-135m", learn="new.tsv", held="known.tsv", out="runs/mine")
    run.compare().to_pandas()
"""

from importlib.metadata import PackageNotFoundError, version

from ._api import Facts, Model, audit, compare, export, forecast, gate, open, report, resume, tune
from ._errors import Interrupted, OverBudget, ProgramNotFound, UnforgetError, UsageError, WorkFailed
from ._results import (
    Audit,
    AuditedFact,
    ComparedFact,
    Comparison,
    Counts,
    EndangeredFact,
    Evaluation,
    Forecast,
    Gate,
    GatedFact,
    Moments,
    Neighbour,
    Result,
    Run,
    RunFact,
    Shares,
)
from ._run import call, program

try:
    __version__ = version("unforget")
except PackageNotFoundError:  # used from a checkout
    __version__ = "0"

__all__ = [
    "Audit",
    "AuditedFact",
    "ComparedFact",
    "Comparison",
    "Counts",
    "EndangeredFact",
    "Evaluation",
    "Facts",
    "Forecast",
    "Gate",
    "GatedFact",
    "Interrupted",
    "Model",
    "Moments",
    "Neighbour",
    "OverBudget",
    "ProgramNotFound",
    "Result",
    "Run",
    "RunFact",
    "Shares",
    "UnforgetError",
    "UsageError",
    "WorkFailed",
    "__version__",
    "audit",
    "call",
    "compare",
    "export",
    "forecast",
    "gate",
    "open",
    "program",
    "report",
    "resume",
    "tune",
]
