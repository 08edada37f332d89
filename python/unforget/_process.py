"""Start the program and wait for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ._errors import ProgramNotFound, from_exit_code
from ._tables import json_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NAME = "unforget.exe" if os.name == "nt" else "unforget"


def program() -> str:
    """Path of the program: `$UNFORGET_BIN`, else the one installed with this package, else the first on the PATH."""
    named = os.environ.get("UNFORGET_BIN")
    if named:
        found = shutil.which(named)
        if found is None:
            raise ProgramNotFound(f"UNFORGET_BIN is not a program: {named}", exit_code=127)
        return found
    schemes = sysconfig.get_scheme_names()
    user = f"{os.name}_user"
    folders = [sysconfig.get_path("scripts"), *([sysconfig.get_path("scripts", user)] if user in schemes else [])]
    for folder in folders:
        path = Path(folder, _NAME)
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    found = shutil.which(_NAME)
    if found is None:
        raise ProgramNotFound(
            "the program unforget is not installed", "install the wheel, or set UNFORGET_BIN to its path", 127
        )
    return found


def run(
    command: str,
    args: Sequence[str] = (),
    *,
    quiet: bool = False,
    env: Mapping[str, str] | None = None,
    allow: Sequence[int] = (),
    has_flags: bool = False,
) -> str:
    """Run a command with `--json`, forward its progress to `sys.stderr`, and return its stdout.

    The program gets its own session, so that Ctrl-C in a terminal reaches it once: from this process. This function
    always waits for the program to end, because it may be writing a checkpoint. `allow` lists exit codes other than 0
    that are not errors. `has_flags`: the user wrote the flags, so that messages name them as they are.
    """
    line = [program(), command, "--json", *(["--quiet"] if quiet else []), *args]
    output: list[str] = []
    error: list[str] = []
    with start(line, stdin=subprocess.DEVNULL, env=env) as process:
        readers = [
            threading.Thread(target=_collect, args=(process.stdout, output), daemon=True),
            threading.Thread(target=_forward, args=(process.stderr, error), daemon=True),
        ]
        for reader in readers:
            reader.start()
        interrupted = _wait(process)
        for reader in readers:
            reader.join()
    code = process.returncode
    if code != 0 and code not in allow:
        raise from_exit_code(code, "".join(error), has_flags=has_flags)
    if interrupted:
        # The program had finished before the signal arrived; the caller should still stop.
        raise KeyboardInterrupt
    return "".join(output)


def start(line: Sequence[str], *, stdin: int, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the program with pipes. It stops, as on SIGTERM, when this process dies."""
    return subprocess.Popen(
        line,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "UNFORGET_PARENT": str(os.getpid()), **(env or {})},
        start_new_session=True,
    )


def call(command: str, *args: Any, quiet: bool = False) -> list[Any]:
    """Run any command with `--json` and return one value per line of its stdout.

    For commands without a function: `unforget.call("drift", "base", "runs/a", "--new=new.tsv", "--held=held.tsv")`.
    """
    texts = [os.fspath(arg) if isinstance(arg, os.PathLike) else str(arg) for arg in args]
    stdout = run(command, texts, quiet=quiet, has_flags=True)
    return json_lines(stdout)


def _wait(process: subprocess.Popen[str]) -> bool:
    """Wait for the process and forward each KeyboardInterrupt as SIGINT. Returns whether there was one.

    The first SIGINT asks the program to stop at a point that it can resume from; a second one ends it at once.
    """
    interrupted = False
    while True:
        try:
            process.wait()
        except KeyboardInterrupt:
            interrupted = True
            process.send_signal(signal.SIGINT)
        else:
            return interrupted


def _collect(stream: IO[str], output: list[str]) -> None:
    output.append(stream.read())


def _forward(stream: IO[str], error: list[str]) -> None:
    """Print lines as they arrive. From the first error line on, keep them for the exception instead."""
    for line in stream:
        if error or line.startswith("error: "):
            error.append(line)
        elif sys.stderr is not None:
            # Keep reading when stderr is closed: a full pipe would block the program.
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(line)
                sys.stderr.flush()
