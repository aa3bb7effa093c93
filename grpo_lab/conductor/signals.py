"""Ctrl-C, SIGTERM and a terminal that hangs up: to end after the step at hand, or at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from grpo_lab.store import folder as store
from grpo_lab.store import records
from grpo_lab.store.folder import Run
from grpo_lab.store.records import Progress

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Stop:
    """What the user's signals ask for: to end after the step at hand, or at once."""

    asked: bool = False
    hard: bool = False
    number: int = signal.SIGINT


@contextlib.contextmanager
def handled(on_signal: Callable[[int], None]) -> Iterator[None]:
    """Give STOPPING to `on_signal` in this block, but for a SIGHUP that nohup lets us ignore."""

    def handler(number: int, frame: FrameType | None) -> None:
        on_signal(number)

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [number for number in STOPPING if number != signal.SIGHUP or not ignored]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def stop_signals(run: Run) -> Iterator[Stop]:
    """The first signal lets a training step end and saves it, the second ends all at once; so does the first where no
    step is at hand."""
    stop = Stop()

    def on_signal(number: int) -> None:
        progress = records.read(run.progress, Progress)
        training = progress is not None and progress.phase in store.STEPPING
        stop.hard = stop.asked or not training
        stop.asked, stop.number = True, number
        if training:
            run.stop_request.touch()

    with handled(on_signal):
        yield stop
