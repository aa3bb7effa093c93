"""What a plan is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ports:
    """Free TCP ports of this host, leased for the length of the run."""

    http: int
    weights: int
    """Where trainer and server meet to transfer weights."""
    rendezvous: int
    """Where the trainer's processes meet."""


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
