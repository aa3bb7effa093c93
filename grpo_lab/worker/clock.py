"""Where the time of a step goes. Sections nest and each counts only its own time, so they add up to the step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from grpo_lab.store.measures import PHASES
from grpo_lab.worker.trainers import Trainer, handling

ANNOUNCED = ("sync", "generate")
"""Phases that wait for somebody else: once each for a batch of completions."""


class Clock:
    """Seconds of the step at hand by phase. What runs in no section is `other`; a pause is no part of the step.

    `announce` is told each phase of ANNOUNCED as it begins, and at its end the one around it or None.
    """

    def __init__(self, announce: Callable[[str | None], None] = lambda phase: None) -> None:
        self._announce = announce
        self._stack = ["other"]
        self._since = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self.paused_s = 0.0
        """Logging and checkpoints between the last two steps, in no phase."""

    @contextmanager
    def section(self, phase: str) -> Iterator[None]:
        self._charge()
        self._stack.append(phase)
        if phase in ANNOUNCED:
            self._announce(phase)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()
            if phase in ANNOUNCED:
                self._announce(self.inside if self.inside in ANNOUNCED else None)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What runs in here is no part of any step, whichever sections it goes through."""
        self._charge()
        before = dict(self._seconds)
        try:
            yield
        finally:
            self._charge()
            self._seconds = before

    def lap(self) -> dict[str, float]:
        """Seconds by phase since the last lap, pauses left out. Starts the next lap."""
        self._charge()
        lap = {phase: self._seconds.get(phase, 0.0) for phase in PHASES}
        self.paused_s = self._seconds.get("pause", 0.0)
        self._seconds = {}
        return lap

    @property
    def inside(self) -> str:
        return self._stack[-1]

    def _charge(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # kernels still running belong to the section that launched them
        now = time.perf_counter()
        self._seconds[self.inside] = self._seconds.get(self.inside, 0.0) + now - self._since
        self._since = now


def attach(clock: Clock, trainer: Trainer) -> None:
    """Time the trainer's own methods. They are wrapped on this one instance; TRL 1.16 has no hook around them
    (its profiling goes to trackers only). tests/worker/test_clock.py fails when a name is gone.
    """
    how = handling(trainer)
    for name, phase in how.phases.items():
        _time(clock, trainer, name, phase, without_gradient=phase == "logprobs")
    for owner, name, phase in how.waits(trainer):
        _time(clock, owner, name, phase)


def _time(clock: Clock, owner: Any, name: str, phase: str, *, without_gradient: bool = False) -> None:
    """Replace a method of one object by itself inside a section; `without_gradient`: not where the loss calls it."""
    method: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        if without_gradient and torch.is_grad_enabled():
            return method(*args, **kwargs)
        with clock.section(phase):
            return method(*args, **kwargs)

    setattr(owner, name, timed)
