"""NVIDIA's driver asked from outside: by a child, since the driver of a lost card may hang whoever asks it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_lab.config.errors import RequestError
from grpo_lab.machine import nvml

ANSWER_S = 30.0
"""Without persistence mode the driver first wakes every card, which takes it seconds."""
WAY_OUT = "gpus=0, or CUDA_VISIBLE_DEVICES=-1, runs without asking it"


@dataclass(frozen=True)
class Device:
    """A card, or a MIG device of one."""

    index: int
    """Of the card, in the order of the PCI bus."""
    uuid: str = ""
    name: str = ""
    total: int = 0
    """Bytes of its memory."""
    used: int = 0
    """Bytes in use by processes."""
    error: str = ""
    """Why it cannot be used."""
    slices: tuple[Device, ...] = ()
    """The MIG devices that the card is cut into."""


def ask() -> tuple[Device, ...]:
    """All cards of this machine, in the order of the PCI bus; none where there is no NVIDIA driver.

    Raises:
        RequestError: if the driver does not answer, or does not work.
    """
    argv = [sys.executable, "-P", nvml.__file__]
    child = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        rows, words = child.communicate(timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        child.kill()  # not waited for: what hangs in the driver may not die
        raise RequestError(f"NVIDIA's driver does not answer within {ANSWER_S:g} s; {WAY_OUT}") from None
    if child.returncode:
        reason = words.strip().rpartition("\n")[2] or f"exit code {child.returncode}"
        raise RequestError(f"NVIDIA's driver does not work: {reason}; {WAY_OUT}")
    return tuple(_device(row) for row in json.loads(rows))


def _device(row: Mapping[str, Any]) -> Device:
    slices = tuple(Device(index=row["index"], **cut) for cut in row.get("slices", ()))
    return Device(**{**row, "slices": slices})
