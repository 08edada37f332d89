"""The program's exit codes as exceptions, one class each."""

from __future__ import annotations

import re
from typing import Any

from ._config import KEYS


class UnforgetError(Exception):
    """The program ended with an exit code other than 0.

    Attributes:
        message: the program's error message.
        hint: how to fix it, where the program gives one.
        exit_code: of the process; negative when a signal ended it.
        run: the `unforget.Run` that was being written, if its directory exists; otherwise None.

    """

    def __init__(self, message: str, hint: str | None = None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        # Typed as Any: this module comes before the one that defines Run.
        self.run: Any = None

    def __str__(self) -> str:
        """The message, with the hint on its own line."""
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class WorkFailed(UnforgetError):  # noqa: N818
    """Exit code 1, or a signal: a broken model file, a full disk, a loss that is not finite."""


class UsageError(UnforgetError):
    """Exit code 2: wrong usage, config or input. Nothing was computed."""


class OverBudget(UnforgetError):  # noqa: N818
    """Exit code 3: the run is complete and saved, but forgot more than the budget. `run.result` has the numbers."""


class Interrupted(UnforgetError):  # noqa: N818
    """Exit code 130: interrupted. `unforget.resume(error.run)` continues a run."""


class ProgramNotFound(UnforgetError, FileNotFoundError):  # noqa: N818
    """The program `unforget` is not installed."""


_BY_EXIT_CODE: dict[int, type[UnforgetError]] = {2: UsageError, 3: OverBudget, 130: Interrupted}


# `--set KEY=VALUE`, `--flag` and `--flag VALUE`; `section.key` and `section.key = value`; `unforget resume RUN`.
_SET = re.compile(r"`--set ([^`]+)`")
_FLAG = re.compile(r"`--([a-z][a-z-]*)(?: ([^`]+))?`")
_KEY = re.compile(r"`([a-z]+(?:\.[a-z_]+)+)( = [^`]+)?`")
_RESUME = re.compile(r"`unforget resume ([^`]+)`")

_SWITCHES = {"control", "force", "keep_checkpoints", "watch"}
_ARGUMENTS = {key: argument for argument, key in KEYS.items()}
_VALUES = {"true": "True", "false": "False"}


def _as_arguments(text: str) -> str:
    """The flags, config keys and commands of a message in Python."""

    def flag(found: re.Match[str]) -> str:
        name, value = found[1].replace("-", "_"), found[2]
        if name in _SWITCHES:
            value = "True"
        return f"`{name}={value}`" if value else f"`{name}`"

    def key(found: re.Match[str]) -> str:
        argument, value = _ARGUMENTS.get(found[1]), (found[2] or "").removeprefix(" = ")
        if argument is None:
            return found[0]
        return f"`{argument}={_VALUES.get(value, value)}`" if value else f"`{argument}`"

    text = _FLAG.sub(flag, _SET.sub(r"`\1`", text))
    # A key that the user wrote in `set` stays one.
    text = text if "unknown key" in text else _KEY.sub(key, text)
    return _RESUME.sub(r'`unforget.resume("\1")`', text)


def from_exit_code(code: int, stderr: str, *, has_flags: bool = False) -> UnforgetError:
    """The exception for an exit code.

    `stderr` is the program's output from `error:` on. `has_flags`: the user wrote flags.
    """
    stderr = stderr if has_flags else _as_arguments(stderr)
    message, _, hint = stderr.strip().removeprefix("error: ").partition("\nhint: ")
    if not message:
        message = {130: "interrupted"}.get(code, f"unforget ended with exit code {code}")
        if code < 0:
            message = f"unforget was ended by signal {-code}"
    return _BY_EXIT_CODE.get(code, WorkFailed)(message, hint or None, code)
