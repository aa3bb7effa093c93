"""A reward under which a run meets its fate: for sweeps whose points fail in every way."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil


def fate(completions: list[Any], how: str, marks: str, log_metric: Any = None, **columns: Any) -> list[float]:
    """`how`: ok, raise_once, kill_once (at the third call), hang, conductor (each time). `marks`: a folder."""
    calls = Path(marks, f"{how}.calls")
    with calls.open("a") as lines:
        lines.write("call\n")
    first = not Path(marks, f"{how}.done").exists()
    if how == "raise_once" and first:
        Path(marks, f"{how}.done").touch()
        raise ValueError("the reward of this point is wrong")
    if how == "kill_once" and first and len(calls.read_text().splitlines()) == 3:
        Path(marks, f"{how}.done").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(600)
    if how == "conductor":
        parents = psutil.Process().parents()
        next(one for one in parents if "grpo_lab.sweep.job" in one.cmdline()).kill()
        time.sleep(600)
    return [float(len(str(completion)) % 7) for completion in completions]
