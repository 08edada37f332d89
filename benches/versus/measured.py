"""Time and peak memory of a command."""

import os
import subprocess
import tempfile
import time


def measured(command, **environment):
    """Runs `command`; returns its time in seconds, its peak memory in bytes and its stdout."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(list(map(str, command)), stdout=out, stderr=err, env=os.environ | environment)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        if child.returncode:
            err.seek(0)
            raise SystemExit(f"{' '.join(map(str, command))}\n{err.read()}")
        out.seek(0)
        return seconds, used.ru_maxrss * 1024, out.read()


def settings(**values):
    """`--set` arguments; `__` in a name becomes a dot."""
    return [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
