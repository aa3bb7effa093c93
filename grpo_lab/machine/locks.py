"""One holder at a time for a folder: a lock file that the kernel unlocks when its holder dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from grpo_lab.config.errors import RequestError


@contextmanager
def held(path: Path, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file, made if it is missing.

    Raises:
        RequestError: if another process keeps it `patience_s` long, or its folder cannot be written.
    """
    # Kept, since a waiting process has it open; that also rules out locks that outlive a killed holder.
    lock = FileLock(path, timeout=patience_s, poll_interval=0.1, preserve_lock_file=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(
            f"{path.parent} cannot be written ({error.strerror}); runs_dir= sets another folder"
        ) from error
    except Timeout:
        holder = path.read_text().strip() or "unknown"
        raise RequestError(f"{path.parent} is in use by process {holder}") from None
    try:
        path.write_text(f"{os.getpid()}\n")
        yield
    finally:
        lock.release()
