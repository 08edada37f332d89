"""Follow a run's `metrics.jsonl` while the program writes it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

OnMetrics = Callable[["dict[str, Any]"], object]
"""Called with each row of `metrics.jsonl`, in a thread of its own."""

# Seconds between two looks at the file.
INTERVAL = 0.5


class Follower:
    """Calls a function with each row that is added to a file while the context is open.

    A function that raises is not called again, and the run continues.
    """

    def __init__(self, path: Path, on_metrics: OnMetrics, *, skip_existing: bool) -> None:
        self._path = path
        self._on_metrics: OnMetrics | None = on_metrics
        self._offset = path.stat().st_size if skip_existing and path.is_file() else 0
        # Rows of an earlier run in the same directory, which the program is about to remove.
        self._started = time.time() if path.is_file() and not skip_existing else 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._read()
        self._read()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            status = self._path.stat()
            if status.st_mtime < self._started:
                return
            # A resumed run removes the rows behind its checkpoint.
            self._offset = min(self._offset, status.st_size)
            with self._path.open("rb") as file:
                file.seek(self._offset)
                complete, newline, _ = file.read().rpartition(b"\n")
            self._offset += len(complete + newline)
            for line in complete.split(b"\n"):
                if line:
                    self._call(json.loads(line))

    def _call(self, row: dict[str, Any]) -> None:
        if self._on_metrics is None:
            return
        try:
            self._on_metrics(row)
        except Exception as error:  # noqa: BLE001 (whatever the caller's function raises)
            self._on_metrics = None
            warnings.warn(f"on_metrics failed and is not called again: {error!r}", stacklevel=2)
