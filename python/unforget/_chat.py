"""A conversation with a model."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from typing import TYPE_CHECKING

from ._api import Model, _options
from ._errors import from_exit_code
from ._process import program, start

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


def chat(
    model: Model,
    *,
    system: str | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
) -> Chat:
    """Begin a conversation with a model, or with the model of a run, through its chat template.

    with unforget.chat("smollm2-135m", system="You answer in one sentence.") as conversation:
        conversation.send("Who wrote Emma?")
        conversation.send("When?")
    """
    args = _options(
        system=system,
        temperature=temperature,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        seed=seed,
        threads=threads,
    )
    return Chat(["--json", "--quiet", *args, "--", os.fspath(model)])


class Chat:
    """A conversation: the program keeps the model loaded, and the messages, until it is closed."""

    def __init__(self, args: list[str]) -> None:
        self._process = start([program(), "chat", *args], stdin=subprocess.PIPE)
        self._errors: list[str] = []
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def send(self, message: str) -> str:
        """The answer to a message of one line."""
        text = message.strip()
        if not text or "\n" in text or text.startswith("/"):
            raise ValueError("a message is one line, and does not begin with `/`")
        self._write(text)
        assert self._process.stdout is not None  # noqa: S101 (it is a pipe)
        line = self._process.stdout.readline()
        if not line:
            self._fail()
        answer: str = json.loads(line)["answer"]
        return answer

    def reset(self) -> None:
        """Forget the conversation; the system message stays."""
        self._write("/reset")

    def close(self) -> None:
        """End the conversation and the program."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 (it is a pipe)
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            self._fail()

    def _read_errors(self) -> None:
        if self._process.stderr is not None:
            with self._process.stderr as stream:
                self._errors.extend(stream)

    def _fail(self) -> None:
        code = self._process.wait()
        self._reader.join()
        raise from_exit_code(code, "".join(self._errors))
