"""Fine-tune language models on new facts without forgetting, or hallucinating about, what they already knew.

A thin layer over the program `unforget`, which does the work and is installed with this package:

    import unforget

    known = unforget.audit("smollm2-135m", "known.tsv")
    run = unforget.tune("smollm2-135m", learn="new.tsv", held="known.tsv", out="runs/mine")
    run.compare().to_pandas()
"""

from importlib.metadata import PackageNotFoundError, version

from ._api import Facts, Model, Run, ask, audit, compare, export, forecast, gate, open, report, resume, score, tune
from ._chat import Chat, chat
from ._errors import Interrupted, OverBudget, ProgramNotFound, UnforgetError, UsageError, WorkFailed
from ._process import call, program
from ._results import (
    AccuracyStages,
    Answer,
    AtRiskFact,
    Audit,
    AuditedFact,
    ComparedFact,
    Comparison,
    Counts,
    Evaluation,
    FactResult,
    Forecast,
    Forgotten,
    Gate,
    GatedFact,
    LabelFractions,
    Neighbour,
    Result,
    Score,
    TokenScore,
)

try:
    __version__ = version("unforget")
except PackageNotFoundError:  # imported from a checkout
    __version__ = "0"

__all__ = [
    "AccuracyStages",
    "Answer",
    "AtRiskFact",
    "Audit",
    "AuditedFact",
    "Chat",
    "ComparedFact",
    "Comparison",
    "Counts",
    "Evaluation",
    "FactResult",
    "Facts",
    "Forecast",
    "Forgotten",
    "Gate",
    "GatedFact",
    "Interrupted",
    "LabelFractions",
    "Model",
    "Neighbour",
    "OverBudget",
    "ProgramNotFound",
    "Result",
    "Run",
    "Score",
    "TokenScore",
    "UnforgetError",
    "UsageError",
    "WorkFailed",
    "__version__",
    "ask",
    "audit",
    "call",
    "chat",
    "compare",
    "export",
    "forecast",
    "gate",
    "open",
    "program",
    "report",
    "resume",
    "score",
    "tune",
]
