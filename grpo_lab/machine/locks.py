"""One holder at a time for a folder: a lock file that the kernel unlocks when its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grpo_lab.config.errors import RequestError


@contextmanager
def held(path: Path, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file, made if it is missing. Raises RequestError if another process keeps it `patience_s` long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_s
    with path.open("a+", encoding="utf-8") as file:
        while not _locked(file.fileno()):
            if time.monotonic() >= deadline:
                file.seek(0)
                raise RequestError(f"{path.parent} is in use by process {file.read().strip() or 'unknown'}")
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
