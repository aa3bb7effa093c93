"""Plan of a training run: arithmetic on a :class:`Config` and a :class:`Machine` that gives a frozen :class:`Plan`.

Pure: it starts nothing, writes nothing and refuses what cannot work with the reason and the way out.
Only this package counts GPUs.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from grpo_lab.config import model as policy
from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.algorithms import algorithm
from grpo_lab.planner.checks.abilities import check_quantized, check_sharding, check_vllm
from grpo_lab.planner.checks.combinations import check_combinations, combination_notes
from grpo_lab.planner.checks.request import check_request
from grpo_lab.planner.checks.secrets import check_secrets
from grpo_lab.planner.checks.shapes import check_shape, unchecked
from grpo_lab.planner.checks.upstream import check_upstream
from grpo_lab.planner.commands import (
    RUN_VARIABLE,
    engine_options,
    engines_of,
    prepare_of,
    server_of,
    trainer_of,
    trl_arguments,
    weight_transfer,
)
from grpo_lab.planner.layout import allowed_gpus, batch_of, hosts_of, roles
from grpo_lab.planner.modes import Mode, mode
from grpo_lab.planner.notes import notes
from grpo_lab.planner.parts import Batch, Command, Ports
from grpo_lab.planner.passes import by_tokens
from grpo_lab.server.command import ServerPlan

__all__ = ["RUN_VARIABLE", "Batch", "Command", "Plan", "Ports", "data_arguments", "make_plan", "shell"]


@dataclass(frozen=True)
class Plan:
    mode: str
    nodes: int
    """Machines that the run spans, the conductor's included."""
    trainer_hosts: tuple[str, ...]
    trainer_gpus: tuple[str, ...]
    """Ids, on each of the trainer's machines."""
    server_hosts: tuple[str, ...]
    server_gpus: tuple[str, ...]
    """Ids, on each of the server's machines."""
    tp: int
    dp: int
    batch: Batch
    model_path: str
    trl: Mapping[str, Any]
    """Arguments of the trainer's config, GRPOConfig in most cases."""
    trainer: tuple[Command, ...]
    """Commands of the trainer, one for each of its machines."""
    server: ServerPlan | None
    """Server on the conductor's machine; None in other modes and for a server that runs already."""
    engines: tuple[Command, ...]
    """Commands of the server's engines on further machines."""
    engine: Mapping[str, Any]
    """Engine arguments of a colocated vLLM beyond those that TRL passes."""
    weight_transfer: str | None
    """How weights reach the server: nccl or gloo; None without a server."""
    prepare: Command | None
    """Makes the checkpoint with random weights, if it is not in the cache."""
    peak_flops: float | None
    """FLOP/s of all GPUs of the run together, dense bf16; None where unknown."""
    notes: tuple[str, ...] = ()
    """Notes for the user, shown before the run starts."""
    sorted_passes: bool = False
    """Whether the passes of a step hold completions of like lengths, each cut to its longest (`passes`)."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Key -> value, of what the config left open and the predictor chose."""
    why: str = ""
    """Reason of the choice."""

    @property
    def generation(self) -> Mode:
        return mode(self.mode)

    @property
    def gpus(self) -> int:
        """Number of GPUs of the whole run, on all its machines."""
        return len(self.trainer_gpus) * len(self.trainer_hosts) + len(self.server_gpus) * len(self.server_hosts)

    @property
    def gpus_per_node(self) -> int:
        """GPUs that each machine of the run must have."""
        return self.gpus if self.nodes == 1 else max(len(self.trainer_gpus), len(self.server_gpus))

    def commands(self) -> Iterator[tuple[str, Command | ServerPlan]]:
        """All that the run starts, in order, each with its role and, of a run over several machines, its machine."""
        if self.prepare is not None:
            yield "prepare", self.prepare
        for command in self.engines:
            yield f"server's engines, {command.host}", command
        if self.server is not None:
            yield "server" if self.nodes == 1 else f"server, {self.server_hosts[0]}", self.server
        for command in self.trainer:
            yield "trainer" if self.nodes == 1 else f"trainer, {command.host}", command

    @property
    def generating_devices(self) -> int:
        """GPUs that generate, on a machine without any: processes."""
        return self.generation.generating(self.batch.processes, self.tp, self.dp)

    @property
    def devices(self) -> int:
        """All that the run occupies: GPUs, on a machine without any: processes."""
        return self.gpus or self.batch.processes + self.generation.beside(self.tp, self.dp)


def make_plan(config: Config, machine: Machine, *, folder: Path, ports: Ports) -> Plan:
    """Decide which GPU and which process does what.

    Raises:
        RequestError: for what cannot work, naming the value and the way out.
    """
    check_request(config)
    config = whole(config)
    check_upstream(config, machine)
    check_secrets(config)
    gpus = allowed_gpus(config, machine)
    trainer = algorithm(config.algorithm.kind)
    trainer.check(config, machine, on_gpu=bool(gpus))
    check_quantized(config, machine, on_gpu=bool(gpus))
    check_combinations(config)
    check_vllm(config, machine, on_gpu=bool(gpus))
    shape = policy.shape(config.model)
    check_shape(config, shape, on_gpu=bool(gpus))
    layout = roles(config, gpus, hosts_of(config, machine), cores=machine.cores)
    check_sharding(config.distributed.kind, machine, layout.processes, on_gpu=bool(gpus))
    batch = batch_of(config.grpo, layout.processes, hosts=len(layout.trainer), together=trainer.together)
    model_path = policy.location(config.model)
    server = server_of(config, machine, folder, model_path, layout, ports)
    names = {gpu.id: gpu for gpu in machine.gpus}
    used = layout.trainer_gpus * len(layout.trainer) + layout.server_gpus * len(layout.server)
    peaks = [names[gpu].peak_flops for gpu in used]
    return Plan(
        mode=config.vllm.mode,
        nodes=config.nodes,
        trainer_hosts=tuple(host.name for host in layout.trainer),
        trainer_gpus=layout.trainer_gpus,
        server_hosts=tuple(host.name for host in layout.server),
        server_gpus=layout.server_gpus,
        tp=config.vllm.tp,
        dp=config.vllm.dp,
        batch=batch,
        model_path=model_path,
        trl=trl_arguments(config, batch, on_gpu=bool(gpus), server=server, folder=folder, ports=ports),
        trainer=trainer_of(config, machine, folder, layout, ports),
        server=server,
        engines=engines_of(config, server, layout),
        engine=engine_options(config, on_gpu=bool(gpus)),
        weight_transfer=weight_transfer(config, on_gpu=bool(gpus)),
        prepare=prepare_of(config, model_path, folder),
        sorted_passes=by_tokens(config, shape, on_gpu=bool(gpus)),
        peak_flops=math.fsum(peak for peak in peaks if peak) if peaks and all(peaks) else None,
        notes=(
            *machine.notes,
            *unchecked(config, shape),
            *trainer.notes(config),
            *combination_notes(config),
            *(notes(layout, server, room=len(gpus), unused=machine.hosts[config.nodes :]) if config.nodes > 1 else ()),
        ),
    )


def whole(config: Config) -> Config:
    """The config with ddp where the sharding is open; the predictor chooses before that where it can."""
    if config.distributed.kind != "auto":
        return config
    return replace(config, distributed=replace(config.distributed, kind="ddp"))


def data_arguments(config: Config) -> dict[str, Any]:
    """The data function's own parameters."""
    return {key: value for key, value in config.data.items() if key not in ("_target_", "max_prompt_tokens")}


def shell(env: Mapping[str, str], argv: Sequence[str]) -> str:
    """A command in a form that a shell takes."""
    return " ".join([*(f"{key}={shlex.quote(value)}" for key, value in env.items()), shlex.join(argv)])
