"""What the program says when it does not end well, as exceptions: one class for each exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._results import Run


class UnforgetError(Exception):
    """The program ended with another exit code than 0.

    Attributes:
        message: what went wrong, in the program's words.
        hint: what to do about it, where the program knows it.
        exit_code: of the process; negative where a signal ended it.
        run: the run that was being written, where there is one on the disk.

    """

    def __init__(self, message: str, hint: str | None = None, exit_code: int = 1, run: Run | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.run = run

    def __str__(self) -> str:
        """The message, and the hint on a line of its own."""
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class WorkFailed(UnforgetError):  # noqa: N818
    """Exit code 1, or a signal: a broken model file, a full disk, a loss that is not finite."""


class UsageError(UnforgetError):
    """Exit code 2: wrong usage, config or input; nothing was computed."""


class OverBudget(UnforgetError):  # noqa: N818
    """Exit code 3: done and saved, but more was forgotten than the budget allows. `run` has the figures."""


class Interrupted(UnforgetError):  # noqa: N818
    """Exit code 130: interrupted. `unforget.resume(error.run)` goes on with a run."""


class ProgramNotFound(UnforgetError, FileNotFoundError):  # noqa: N818
    """There is no `unforget` program to be started."""


_BY_CODE: dict[int, type[UnforgetError]] = {2: UsageError, 3: OverBudget, 130: Interrupted}


def of_exit(code: int, said: str, run: Run | None) -> UnforgetError:
    """The exception for an exit code; `said` is what stood on stderr from `error:` on."""
    message, _, hint = said.strip().removeprefix("error: ").partition("\nhint: ")
    if not message:
        message = {130: "interrupted"}.get(code, f"unforget ended with exit code {code}")
        if code < 0:
            message = f"unforget was ended by signal {-code}"
    return _BY_CODE.get(code, WorkFailed)(message, hint or None, code, run)
