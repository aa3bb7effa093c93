"""Where the points of a sweep run, on this machine, through Slurm or in a Ray cluster: what each must offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from grpo_lab.machine.gpus import Machine


@dataclass(frozen=True)
class Need:
    """What one point occupies for its whole length."""

    gpus: int = 0
    cores: int = 1
    pinned: tuple[str, ...] = ()
    """Ids of the very GPUs that the user asked for (`gpus=[2,3]`); none: any will do."""
    nodes: int = 1
    """Machines that share the point; `gpus` and `cores` are then of each."""


@dataclass(frozen=True)
class Work:
    """One try of a point, as a command that ends with exit code 0 if, and only if, the point finished."""

    name: str
    """Of the point within its sweep; a valid file name."""
    argv: Sequence[str]
    log: Path
    """Where its output goes; on a cluster, on a file system that all machines share."""
    need: Need = field(default_factory=Need)
    env: Mapping[str, str] = field(default_factory=dict)
    """Over the launcher's own."""
    timeout_s: float | None = None
    """For engines that want to know beforehand; the sweep itself ends a point that runs longer."""


class Attempt(Protocol):
    """A try that was started or queued. Not used from several threads at once."""

    where: str
    """For people: `GPU 0,1`, `node3 (job 17)`, `queued (job 17)`; may change."""
    running: bool
    """False while an engine keeps it in its queue: its time has not begun."""

    def poll(self) -> int | None:
        """Exit code, None until it has ended; -N: ended by signal N (-9 also for a job that a cluster lost)."""

    def ask(self) -> None:
        """Ask the command, and not what it has started, to end soon (SIGTERM): a run saves a checkpoint."""

    def stop(self) -> None:
        """End it with all that it has started; nothing of it is left on return."""


class Backend(Protocol):
    machine: Machine
    """One machine of those that points run on, the largest: what a point's plan is made for."""

    spans: bool
    """Whether one point may have several machines."""

    def start(self, work: Work) -> Attempt | None:
        """Start or queue it; None while there is no room. Work whose need exceeds the machine is never offered."""

    def close(self) -> None:
        """No more work will come; everything started has ended or was stopped."""
