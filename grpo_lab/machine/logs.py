"""What a child's log says: its last lines, and the exceptions that came first."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

PREFIX = re.compile(r"^(\([^()]* pid=\d+\) ?)?([A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?")
"""What vLLM's logging puts before a line: `(EngineCore pid=12) ERROR 11-21 08:21:08 [core.py:129] `."""

EXCEPTION = re.compile(r"^((\w+\.)*[A-Z]\w*(Error|Exception|Interrupt|Failure|Full)\b(: |$)|\S+: error: )")
CONSEQUENCE = re.compile(
    r"Engine core initialization failed|Engine core proc .* died|EngineDeadError|WorkerProc initialization failed"
    r"|Failed core proc|process failed to start|died unexpectedly|CancelledError|KeyboardInterrupt|TCPStore|BrokenPipe"
)
"""Exceptions that only say that some other process had one."""

OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|Cannot allocate memory|No available memory for the cache blocks"
    r"|KV cache memory|KV cache is needed|desired GPU memory utilization"
)


SIGNAL = re.compile(r"\bfailed \(exitcode: -(\d+)\) local_rank: \d+")
"""torch's launcher of several processes, on the first that failed; it then ends the others by SIGTERM itself."""


class Log:
    """A child's log from where it stood when this was made, or as a `whole`."""

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        self.path = path
        self._start = path.stat().st_size if path.exists() and not whole else 0

    def lines(self, last_bytes: int) -> list[str]:
        """The last lines that say something, without vLLM's prefixes."""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._start, size - last_bytes))
            text = file.read().decode(errors="replace")
        bare = (PREFIX.sub("", line.rpartition("\r")[2].rstrip()) for line in text.split("\n"))
        return [line for line in bare if re.search(r"[A-Za-z]{3}", line)]

    def last_line(self) -> str:
        return next(iter(self.lines(4096)[-1:]), "")[:160]

    def tail(self, count: int = 12) -> str:
        return "\n".join([f"last lines of {self.path}:", *(f"  {line[:300]}" for line in self.lines(32768)[-count:])])

    def refusal(self) -> str:
        """The words with which a command of ours refused a request; the last lines if there are none."""
        lines = self.lines(32768)
        at = [index for index, line in enumerate(lines) if line.startswith("error: ")]
        return "\n".join(lines[at[-1] :]).removeprefix("error: ") if at else self.tail()

    def signals(self) -> list[int]:
        """Those that ended processes of several: of the first to fail on each host."""
        return [int(match[1]) for line in self.lines(32768) if (match := SIGNAL.search(line))]

    def causes(self, count: int = 3) -> list[str]:
        """The exceptions in it, first the first: what came later mostly only followed from it."""
        lines = self.lines(4 * 2**20)
        exceptions = [_with_details(lines, at) for at, line in enumerate(lines) if EXCEPTION.match(line)]
        roots = [cause for cause in exceptions if not CONSEQUENCE.search(cause)]
        return list(dict.fromkeys(roots or exceptions))[:count]


def _with_details(lines: Sequence[str], at: int) -> str:
    """pydantic puts what is wrong on indented lines below `1 validation error for X`."""
    if "validation error" not in lines[at]:
        return lines[at][:500]
    details = [line.strip() for line in lines[at + 1 : at + 4] if line.startswith(" ")]
    return " ".join([lines[at], *details])[:500]
