"""Chooses what the config leaves open so that the run fits its machine, by the predictor; explicit values stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config, DistributedConfig
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.parts import Ports
from grpo_lab.planner.train import make_plan
from grpo_lab.predictor import verdict
from grpo_lab.predictor.check import smallest
from grpo_lab.predictor.parts import Layout
from grpo_lab.predictor.verdict import FITS, GIB, NO, Verdict
from grpo_lab.predictor.workload import workload

SHARDINGS = (
    DistributedConfig("ddp"),
    DistributedConfig("fsdp2"),
    DistributedConfig("zero3"),
    DistributedConfig("fsdp2", offload=True),
    DistributedConfig("zero3", offload=True),
)
"""In the order in which they are tried: all of the model in each process, then shares of it, then the host's memory."""


@dataclass(frozen=True)
class Filled:
    """A config without open choices."""

    config: Config
    chosen: Mapping[str, object] = field(default_factory=dict)
    """Key -> value, of what the config left open."""
    why: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the banner."""
        return (f"{' '.join(f'{key}={value}' for key, value in self.chosen.items())}: {self.why}",) if self.why else ()


def filled(config: Config, machine: Machine) -> Filled:
    """Fill in the sharding. Without GPUs, or with one process, or where nothing is predicted, it is ddp."""
    if config.distributed.kind != "auto":
        return Filled(config)
    plain = replace(config, distributed=SHARDINGS[0])
    judged = list(_judged(config, machine))
    best = next((item for item in judged if item[1].kind == FITS), None)
    best = best or next((item for item in judged if item[1].kind != NO), None)
    if best is None or best[0].distributed == SHARDINGS[0]:
        return Filled(plain)
    chosen, judgement = best
    why = f"predicted {_needs(judgement, machine)}"
    if judged[0][0].distributed == SHARDINGS[0]:
        why += f", ddp {_needs(judged[0][1], machine)}"
    return Filled(chosen, {"distributed": name(chosen.distributed)}, why)


def applied(config: Config, chosen: Mapping[str, Any]) -> Config:
    """The config with the choices that a plan.json holds."""
    if "distributed" not in chosen:
        return config
    sharding = next(sharding for sharding in SHARDINGS if name(sharding) == chosen["distributed"])
    return replace(config, distributed=sharding)


def name(sharding: DistributedConfig) -> str:
    """Value of `distributed=`."""
    return sharding.kind + ("_offload" if sharding.offload else "")


def _judged(config: Config, machine: Machine) -> Iterator[tuple[Config, Verdict]]:
    """Shardings that can be planned, in order, up to the first that fits."""
    for sharding in SHARDINGS:
        candidate = replace(config, distributed=sharding)
        try:
            plan = make_plan(candidate, machine, folder=Path("runs/plan"), ports=Ports(0, 0, 0))
            work = workload(candidate)
        except RequestError:
            continue
        if not plan.gpus:
            return
        judgement = verdict.judge(
            work, Layout.of(candidate, plan), smallest(machine), own_server=config.vllm.url is None
        )
        yield candidate, judgement
        if judgement.kind == FITS:
            return


def _needs(judgement: Verdict, machine: Machine) -> str:
    """Memory of the trainer's fullest GPU."""
    need = next(need for role, need in judgement.needs.items() if role.startswith("trainer"))
    return f"{need.total / GIB:.1f} of {smallest(machine).memory / GIB:.1f} GiB a trainer's GPU"
