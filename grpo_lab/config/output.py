"""What a command prints, where its reader ends, its terminal is gone, or its encoding lacks letters."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import Any, TextIO

READER_ENDED = "note: nobody reads the output any more; going on without it"
_GONE = (errno.EPIPE, errno.EIO)
"""A pipe without a reader; a terminal that hung up."""


_LEGIBLE = "grpo_lab.legible"


def _legible(error: UnicodeError) -> tuple[str, int]:
    """What stands for letters that an encoding lacks: bars of another sign, else escapes."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end].replace("█", "#")
    return lacking.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(_LEGIBLE, _legible)


class _Lasting(io.FileIO):
    """A file descriptor to write to, which becomes /dev/null once nobody is at its other end."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in _GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if self.fileno() == 1 and error.errno == errno.EPIPE:
                print(READER_ENDED, file=sys.stderr)
            return len(data)


def settle(*, outlast: bool = True) -> None:
    """Let the process's own stdout and stderr write what their encoding lacks as escapes and, where it has more to do
    than to print, outlast their readers. What was closed before the start goes to /dev/null."""
    _reopen()
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        stream.flush()
        raw = (_Lasting if outlast else io.FileIO)(stream.fileno(), "w", closefd=False)
        by_line = name == "stderr" or raw.isatty()
        setattr(sys, name, _text(raw, stream.encoding, by_line=by_line))


def _reopen() -> None:
    """Before a file of ours gets the number of a standard descriptor, and children write into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(nowhere, nowhere == number)
            setattr(sys, name, io.TextIOWrapper(io.FileIO(nowhere, "w" if number else "r", closefd=False), "utf-8"))


def _text(raw: io.FileIO, encoding: str, *, by_line: bool) -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=_LEGIBLE, line_buffering=by_line)
