"""A full disk: noticed, named with the file and what it needs, and the room that saying so takes."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
SAID = "No space left on device"
NEARLY_FULL = 2**16
"""Bytes: with fewer of them free a disk counts as full."""
BALLAST = 2**18
"""Bytes that a run holds back, to be given up for the files that say how it ended."""


class DiskFull(OSError):
    """`path` could not be written; `needed`: its bytes, None where unknown."""

    def __init__(self, path: Path, needed: int | None = None) -> None:
        free = shutil.disk_usage(_existing(path)).free
        what = f" {_bytes(needed)} are needed and" if needed else ""
        super().__init__(errno.ENOSPC, f"{SAID}: {path}:{what} {_bytes(free)} are free; make room, then resume=true")

    def __str__(self) -> str:
        return str(self.args[1])


@contextlib.contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[None]:
    """Raises DiskFull for whatever a library raises when there is no room: few say which file it was."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if is_full(error, path):
            raise DiskFull(path, needed) from error
        raise


def is_full(error: BaseException, path: Path) -> bool:
    """Whether the error says that there was no room at `path`.

    torch's writer has no words for it (2.13: RuntimeError "[enforce fail at inline_container.cc:672]"), so the disk
    is asked.
    """
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    if SAID in str(error):
        return True
    return "inline_container" in str(error) and nearly_full(path)


def full_disk(error: BaseException, folder: Path) -> DiskFull | None:
    """The full disk behind an exception of somebody else's code; None where it is another failure."""
    if isinstance(error, DiskFull):
        return error
    return DiskFull(Path(getattr(error, "filename", None) or folder)) if is_full(error, folder) else None


def nearly_full(path: Path) -> bool:
    return shutil.disk_usage(_existing(path)).free < NEARLY_FULL


def check_room(path: Path, needed: int) -> None:
    """Raises DiskFull before anything is written."""
    if shutil.disk_usage(_existing(path)).free < needed:
        raise DiskFull(path, needed)


def hold_back(path: Path) -> None:
    """Make the ballast. Random bytes: some file systems store zeros in no room."""
    try:
        with writing(path, BALLAST):
            path.write_bytes(os.urandom(BALLAST))
    except DiskFull:
        path.unlink(missing_ok=True)
        raise


def _existing(path: Path) -> Path:
    """The path or the nearest folder above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _bytes(count: int) -> str:
    power, unit = next((one for one in ((30, "GiB"), (20, "MiB"), (10, "KiB")) if count >> one[0]), (0, "bytes"))
    return f"{count / 2**power:.1f} {unit}" if power else f"{count} {unit}"
