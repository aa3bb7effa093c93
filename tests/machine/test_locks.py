"""Locks between processes: who holds one is named, waiting helps, and a killed holder leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_lab.config.errors import RequestError
from grpo_lab.machine import locks

HOLD = """
import sys
from pathlib import Path
from grpo_lab.machine import locks
with locks.held(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "run" / ".lock"


@pytest.fixture
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_holder_is_named_also_the_second_time(lock: Path, holder: subprocess.Popen[str]) -> None:
    for _ in range(2):
        message = f"{lock.parent} is in use by process {holder.pid}$"
        with pytest.raises(RequestError, match=message), locks.held(lock):
            pass


def test_a_killed_holder_holds_nothing(lock: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with locks.held(lock):
        pass


def test_waiting_for_the_holder(lock: Path, holder: subprocess.Popen[str]) -> None:
    threading.Timer(0.5, holder.kill).start()
    with locks.held(lock, patience_s=30):
        assert lock.read_text().strip() != str(holder.pid)


def test_a_folder_may_be_set_aside_while_it_is_held(lock: Path) -> None:
    with locks.held(lock):
        lock.parent.rename(lock.parent.with_name("aside"))
    with locks.held(lock), locks.held(lock.parent.with_name("aside") / ".lock"):
        pass
