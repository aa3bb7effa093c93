"""Free TCP ports of this host, one holder each among all harnesses of this user."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from grpo_lab.config.errors import RequestError

RANGE = "GRPO_LAB_PORTS"  # environment variable: FIRST-LAST
DEFAULT_RANGE = "20000-29999"  # below the kernel's ephemeral ports


@contextmanager
def lease(count: int) -> Iterator[tuple[int, ...]]:
    """`count` free ports, ours until the block ends or this process does.

    A port is free when nobody leases it (a lock file, which the kernel unlocks when its holder dies) and nothing is
    bound to it. The lock, unlike the test alone, also holds for the time until our server has bound the port.
    """
    with ExitStack() as held:
        yield tuple(_lease_one(held) for _ in range(count))


def _lease_one(held: ExitStack) -> int:
    first, last = port_range()
    start = random.SystemRandom().randint(first, last)
    ports: list[int] = [*range(start, last + 1), *range(first, start)]
    for port in ports:
        lock = _lock(port)
        if lock is None:
            continue
        if is_free(port):
            held.enter_context(lock)
            return port
        lock.close()
    raise RequestError(f"no free port in {first}-{last}; set {RANGE}=FIRST-LAST to another range")


def port_range() -> tuple[int, int]:
    """First and last port that may be leased. Raises RequestError."""
    text = os.environ.get(RANGE, DEFAULT_RANGE)
    first, _, last = text.partition("-")
    if not (first.isdigit() and last.isdigit() and 1024 <= int(first) <= int(last) <= 65535):
        raise RequestError(f"{RANGE}={text!r} is not FIRST-LAST with 1024 <= FIRST <= LAST <= 65535")
    return int(first), int(last)


def is_free(port: int) -> bool:
    """Whether nothing is bound to the port, on any address.

    Without SO_REUSEADDR and SO_REUSEPORT: a listener that shares its port (vLLM's API servers with data parallelism do)
    counts as well.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _lock(port: int) -> IO[bytes] | None:
    folder = Path(tempfile.gettempdir()) / f"grpo-lab-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = (folder / str(port)).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
