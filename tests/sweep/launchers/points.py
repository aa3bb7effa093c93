"""Commands that stand for a point, and what a test waits for."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from grpo_lab.sweep.launchers.base import Attempt, Need, Work

SHOW = "import os; print(*(os.environ.get(name) for name in {names}), os.getcwd(), flush=True)"

WAIT = '''
import signal, subprocess, sys, time
child = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("child told", flush=True))
print("up", flush=True)
time.sleep(600)
"""
subprocess.Popen([sys.executable, "-c", child])
def save(*_):
    print("saving", flush=True)
    time.sleep(1)
    print("saved", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, save)
time.sleep(600)
'''
"""Saves for a second when it is asked to end; its child says so if it was asked as well."""

DEAF = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = "import time; print('up', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
time.sleep(600)
"""

RESUME = """
import signal, sys, time
from pathlib import Path
saved = Path(sys.argv[1])
if saved.exists():
    print("goes on", flush=True)
    sys.exit(0)
def save(*_):
    saved.touch()
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("up", flush=True)
time.sleep(600)
"""
"""Ends well once it has something to go on from."""


def work(folder: Path, code: str, *arguments: object, need: Need | None = None, name: str = "lr=1,seed=2") -> Work:
    argv = (sys.executable, "-c", code, *map(str, arguments))
    return Work(name, argv, folder / f"{name}.log", need or Need(), {"POINT": name}, timeout_s=600)


ENDS = [7, -signal.SIGSEGV, 127]


def ending_works(folder: Path) -> list[Work]:
    """An exit code, a signal, and no such command: they end as in ENDS."""
    seven, killed = "raise SystemExit(7)", "import os; os.kill(os.getpid(), 11)"
    absent = dataclasses.replace(work(folder, "", name="c"), argv=("no-such-command",))
    return [work(folder, seven, name="a"), work(folder, killed, name="b"), absent]


@contextlib.contextmanager
def launcher(code: str, *arguments: object) -> Iterator[IO[str]]:
    """What a launcher prints; it is killed in the end."""
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.kill()


def begun(attempt: Attempt | None, task: Work, word: str = "up", timeout_s: float = 30) -> Attempt:
    """The attempt, once it runs and its command has said the word."""
    assert attempt is not None
    until(lambda: attempt.poll() is not None or (attempt.running and word in said(task)), timeout_s)
    assert attempt.poll() is None, said(task)
    return attempt


def code_of(attempt: Attempt | None, timeout_s: float = 60) -> int | None:
    assert attempt is not None
    until(lambda: attempt.poll() is not None, timeout_s)
    return attempt.poll()


def said(task: Work) -> list[str]:
    return task.log.read_text().splitlines() if task.log.exists() else []


def until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)
