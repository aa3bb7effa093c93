"""Rewards that break something at a step, as a user's function, a full disk or a kill would."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any


def number(completions: list[Any], trainer_state: Any, steps: dict[int, str], **columns: Any) -> list[float]:
    """Lengths; at each of `steps` the first completion gets another value instead, such as `nan`."""
    values = lengths(completions)
    if (value := steps.get(trainer_state.global_step + 1)) is not None:
        values[0] = float(value)
    return values


def lengths(completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


def constant(completions: list[Any], **columns: Any) -> list[float]:
    return [1.0 for _ in completions]


def nothing(completions: list[Any], **columns: Any) -> list[None]:
    return [None for _ in completions]


def filling(
    completions: list[Any], trainer_state: Any, step: int, disk: str, steal: str, **columns: Any
) -> list[float]:
    """Fills the disk in a step, once. `steal`: a file to delete first, whose room goes too; empty for none."""
    file = Path(disk, "filler")
    if trainer_state.global_step + 1 == step and not file.exists():
        if steal:
            Path(steal).unlink()
        fill(file)
    return lengths(completions)


def fill(file: Path) -> None:
    """Down to the last byte."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as output:
        while True:
            output.write(bytes(2**12))


def killing(completions: list[Any], trainer_state: Any, step: int, done: str, **columns: Any) -> list[float]:
    """Kills its own process in a step, once: `done` is a file that says that it has."""
    if trainer_state.global_step + 1 == step and not Path(done).exists():
        Path(done).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return lengths(completions)


def stopping(completions: list[Any], folder: str, **columns: Any) -> list[float]:
    """Asks the run to end after the step at hand, as a conductor would that was told to."""
    Path(folder, "stop").touch()
    return lengths(completions)
