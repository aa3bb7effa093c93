"""What predictions are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from grpo_lab.config.schema import Config
from grpo_lab.planner.modes import Mode, mode
from grpo_lab.planner.train import Plan, whole


@dataclass(frozen=True)
class Layout:
    """Who generates, who trains, and what a trainer's process takes at a time."""

    mode: str
    tp: int
    dp: int
    trainer: int
    """Processes of the trainer, one GPU each."""
    kind: str
    """ddp, fsdp2, zero2 or zero3."""
    per_device: int
    """Completions of one pass."""
    accumulation: int
    nodes: int = 1
    """Machines."""

    @classmethod
    def of(cls, config: Config, plan: Plan) -> Layout:
        batch = plan.batch
        return cls(
            plan.mode,
            plan.tp,
            plan.dp,
            batch.processes,
            whole(config).distributed.kind,
            batch.per_device,
            batch.accumulation,
            plan.nodes,
        )

    @classmethod
    def generating(cls, mode: str, tp: int, dp: int, nodes: int = 1) -> Layout:
        """Engines without a trainer."""
        return cls(mode, tp, dp, trainer=0, kind="ddp", per_device=0, accumulation=0, nodes=nodes)

    @property
    def generation(self) -> Mode:
        return mode(self.mode)

    @property
    def gpus(self) -> int:
        return self.trainer + self.generation.beside(self.tp, self.dp)

    @property
    def engines(self) -> int:
        """That share the completions of a step; with `off` the trainer's processes."""
        return self.generation.sharing(self.trainer, self.dp)

    def __str__(self) -> str:
        trainer = f" {self.kind}" if self.generation.colocated else f", trainer {self.trainer} {self.kind}"
        return self.generation.layout(self.tp, self.dp) + (trainer if self.trainer else "")


@dataclass(frozen=True)
class Phases:
    """Seconds of one step. Rewards are the user's own functions and not predicted."""

    generate: float
    sync: float
    logprobs: float
    train: float
    other: float

    @property
    def step(self) -> float:
        return math.fsum(asdict(self).values())


PREDICTED = tuple(field.name for field in fields(Phases))
"""Those of the phases of a step (`store.measures.PHASES`) that are predicted."""


@dataclass(frozen=True)
class Need:
    """Bytes on the fullest GPU of a role."""

    parts: Mapping[str, float]
    given: float = 0.0
    """Of the total, what is no estimate: the share that vLLM is told to take."""

    @property
    def total(self) -> float:
        return sum(self.parts.values())
