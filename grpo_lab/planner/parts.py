"""Parts of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from grpo_lab.machine.nodes import Host


@dataclass(frozen=True)
class Ports:
    """Free TCP ports of this host, leased for the length of the run. On the other hosts of a run, which has them for
    itself, they are taken to be free as well."""

    http: int
    weights: int
    """Where trainer and server meet to transfer weights."""
    rendezvous: int
    """Where the trainer's processes meet."""
    engines: int = 0
    """Where the engines of a server that spans several hosts meet; 0 is for planning only."""


@dataclass(frozen=True)
class Roles:
    """Hosts and GPUs of trainer and server. Each host of a role has the same share of it."""

    processes: int
    """Processes of the trainer, on all its hosts together."""
    trainer: tuple[Host, ...]
    trainer_gpus: tuple[str, ...]
    """Ids, on each of the trainer's hosts."""
    server: tuple[Host, ...] = ()
    """Empty in the other modes, and for a server that runs already."""
    server_gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """`completions` a step = `processes` * `per_device` * `accumulation` = `prompts` * `generations`."""

    completions: int
    prompts: int
    generations: int
    processes: int
    per_device: int
    accumulation: int

    def __str__(self) -> str:
        return (
            f"{self.completions} completions a step = {self.prompts} prompts x {self.generations}"
            f" = {self.processes} process{'es' if self.processes > 1 else ''} x {self.per_device} a pass"
            f" x {self.accumulation} accumulated"
        )


@dataclass(frozen=True)
class Command:
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    """Machine that it runs on; the command gets there by itself."""
