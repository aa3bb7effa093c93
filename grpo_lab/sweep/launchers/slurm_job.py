"""What a Slurm job of ours runs on its node: a point's command, and what it does about Slurm's signals.

ASK: end after saving. STOP: end at once. SIGTERM: Slurm is about to end the job, because it is cancelled or makes room
for another. PREEMPT: its time is nearly up, or it makes room where the cluster warns by it. The command itself gets
none of them where Slurm tracks processes by cgroup, as it does unless told otherwise. Where it signals every process of
a job, asking must not hurt: SIGURG does nothing to those who do not wait for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

import submitit
from submitit.helpers import DelayedSubmission

from grpo_lab.sweep.launchers.remote import Command, Orders

ASK, STOP, PREEMPT = signal.SIGURG, signal.SIGUSR1, signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]


@dataclass(frozen=True)
class SlurmJob:
    """The command as submitit's callable; returns its exit code, with nothing left of it.

    A job that must leave its node gives the command `save_s` seconds to save and comes again, under the same id: the
    command then starts anew and goes on by itself from what it has saved.
    """

    command: Command
    save_s: float

    def checkpoint(self) -> DelayedSubmission:
        """For submitit: what runs when the job comes again."""
        return DelayedSubmission(self)

    def __call__(self) -> int:
        requeue: Any = signal.getsignal(PREEMPT)  # submitit's
        orders, leave = Orders(), set[int]()

        def on_signal(number: int, frame: FrameType | None) -> None:
            if number == STOP:
                orders.stop_at = 0.0
            orders.ask = True
            if number in (signal.SIGTERM, PREEMPT):
                leave.add(number)
                orders.stop_at = min(orders.stop_at, time.monotonic() + self.save_s)

        for number in (ASK, STOP, signal.SIGTERM, PREEMPT):
            signal.signal(number, on_signal)
        code = self.command.run(orders)
        if leave and code != 0 and orders.stop_at > 0:
            if _may_return(leave):
                requeue(PREEMPT, None)
            sys.exit(128 + signal.SIGTERM)  # without a result: whoever waits for one goes by what becomes of the job
        return code


def _may_return(heard: set[int]) -> bool:
    """Whether it is on the job to queue itself again.

    One that Slurm still counts as running has only been warned. One that it does not is being cancelled, or queued
    again by Slurm; if it queued itself, a cancelled job would come back.
    """
    if submitit.JobEnvironment().cluster == "local":
        return PREEMPT in heard
    state = ["squeue", "--noheader", "--all", f"--jobs={os.environ['SLURM_JOB_ID']}", "--format=%T"]
    return subprocess.run(state, capture_output=True, text=True, check=False).stdout.strip() == "RUNNING"
