"""Starting the program and waiting for it."""

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

from ._errors import ProgramNotFound, of_exit
from ._tables import json_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._results import Run

_NAME = "unforget.exe" if os.name == "nt" else "unforget"


def program() -> str:
    """Path of the program: `$UNFORGET_BIN`, else what came with this package, else the first on the PATH."""
    named = os.environ.get("UNFORGET_BIN")
    if named:
        found = shutil.which(named)
        if found is None:
            raise ProgramNotFound(f"UNFORGET_BIN names no program: {named}", exit_code=127)
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
    writes: Run | None = None,
    env: Mapping[str, str] | None = None,
    allow: Sequence[int] = (),
) -> str:
    """Run a command with `--json`, pass its progress on to `sys.stderr`, and return its stdout.

    The program is a session of its own, so that Ctrl-C at a terminal reaches it once: from here. It is waited for
    whatever happens, since it may be writing a checkpoint.
    """
    line = [program(), command, "--json", *(["--quiet"] if quiet else []), *args]
    written: list[str] = []
    failed: list[str] = []
    with subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **(env or {})},
        start_new_session=True,
    ) as process:
        readers = [
            threading.Thread(target=_keep, args=(process.stdout, written), daemon=True),
            threading.Thread(target=_pass_on, args=(process.stderr, failed), daemon=True),
        ]
        for reader in readers:
            reader.start()
        interrupted = _wait(process)
        for reader in readers:
            reader.join()
    code = process.returncode
    if code != 0 and code not in allow:
        there = writes if writes is not None and writes.path.joinpath("config.toml").is_file() else None
        raise of_exit(code, "".join(failed), there)
    if interrupted:
        # It was done before it heard of it; whoever called is to stop all the same.
        raise KeyboardInterrupt
    return "".join(written)


def call(command: str, *args: Any, quiet: bool = False) -> list[Any]:
    """Run any command with `--json`; a value for each line of its stdout.

    For what has no function of its own: `unforget.call("drift", "base", "runs/a", "--new=new.tsv", "--held=held.tsv")`.
    """
    said = run(command, [os.fspath(arg) if isinstance(arg, os.PathLike) else str(arg) for arg in args], quiet=quiet)
    return json_lines(said)


def _wait(process: subprocess.Popen[str]) -> bool:
    """Wait for the end and hand on each KeyboardInterrupt as SIGINT; tells whether there was one.

    The first asks the program to stop where it can go on later, a second one ends it at once.
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


def _keep(stream: IO[str], into: list[str]) -> None:
    into.append(stream.read())


def _pass_on(stream: IO[str], failed: list[str]) -> None:
    """Print lines as they come; from the first that is an error on they are kept for the exception."""
    for line in stream:
        if failed or line.startswith("error: "):
            failed.append(line)
        elif sys.stderr is not None:
            # A closed stderr is no reason to stop reading, which would stop the program.
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(line)
                sys.stderr.flush()
