"""What was decided: arithmetic on a :class:`Config` and a :class:`Machine` that gives a frozen :class:`Plan`.

Pure: it starts nothing, writes nothing and refuses what cannot work with the reason and the way out.
Only this package counts GPUs.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_lab import policy
from grpo_lab.config import Config
from grpo_lab.engine import ServerPlan
from grpo_lab.machine import Machine
from grpo_lab.plan.checks import check_names, check_shape, check_sharding, check_upstream, check_vllm
from grpo_lab.plan.commands import (
    RUN_VARIABLE,
    engine_options,
    prepare_of,
    server_of,
    trainer_of,
    trl_arguments,
    weight_transfer,
)
from grpo_lab.plan.layout import allowed_gpus, batch_of, roles
from grpo_lab.plan.parts import Batch, Command, Ports

__all__ = ["RUN_VARIABLE", "Batch", "Command", "Plan", "Ports", "data_arguments", "make_plan", "shell"]


@dataclass(frozen=True)
class Plan:
    mode: str
    trainer_gpus: tuple[str, ...]
    server_gpus: tuple[str, ...]
    tp: int
    dp: int
    batch: Batch
    model_path: str
    trl: Mapping[str, Any]
    """Arguments of GRPOConfig that the harness decides."""
    trainer: Command
    server: ServerPlan | None
    engine: Mapping[str, Any]
    """Engine arguments of a colocated vLLM beyond those that TRL passes."""
    weight_transfer: str | None
    """How weights reach the server: nccl or gloo; None without a server."""
    prepare: Command | None
    """Makes the checkpoint with random weights, if it is not in the cache."""
    peak_flops: float | None
    """Of all GPUs of the run together, dense bf16; None where unknown."""

    @property
    def gpus(self) -> int:
        return len(set(self.trainer_gpus) | set(self.server_gpus))

    @property
    def generating_devices(self) -> int:
        """GPUs that generate, on a machine without any: processes."""
        return {"off": self.batch.processes, "colocate": self.batch.processes, "server": self.tp * self.dp}[self.mode]

    @property
    def devices(self) -> int:
        """All that the run occupies: GPUs, on a machine without any: processes."""
        return self.gpus or self.batch.processes + (self.generating_devices if self.mode == "server" else 0)


def make_plan(config: Config, machine: Machine, *, folder: Path, ports: Ports) -> Plan:
    """Decide who does what.

    Raises:
        RequestError: for what cannot work, naming the value and the way out.
    """
    check_names(config)
    check_upstream(config, machine)
    gpus = allowed_gpus(config, machine)
    check_vllm(config, machine, on_gpu=bool(gpus))
    shape = policy.architecture(config.model)
    check_shape(config, shape)
    processes, trainer_gpus, server_gpus = roles(config, gpus)
    check_sharding(config.distributed.kind, machine, processes, on_gpu=bool(gpus))
    batch = batch_of(config.grpo, processes)
    model_path = policy.location(config.model)
    server = server_of(config, machine, folder, model_path, server_gpus, ports)
    names = {gpu.id: gpu for gpu in machine.gpus}
    peaks = [names[gpu].peak_flops for gpu in {*trainer_gpus, *server_gpus}]
    return Plan(
        mode=config.vllm.mode,
        trainer_gpus=trainer_gpus,
        server_gpus=server_gpus,
        tp=config.vllm.tp,
        dp=config.vllm.dp,
        batch=batch,
        model_path=model_path,
        trl=trl_arguments(config, batch, on_gpu=bool(gpus), server=server, folder=folder, ports=ports),
        trainer=trainer_of(config, machine, folder, processes, trainer_gpus, ports),
        server=server,
        engine=engine_options(config, on_gpu=bool(gpus)),
        weight_transfer=weight_transfer(config, on_gpu=bool(gpus)) if config.vllm.mode == "server" else None,
        prepare=prepare_of(config, model_path, folder),
        peak_flops=math.fsum(peak for peak in peaks if peak) if peaks and all(peaks) else None,
    )


def data_arguments(config: Config) -> dict[str, Any]:
    """The data function's own parameters."""
    return {key: value for key, value in config.data.items() if key not in ("_target_", "max_prompt_tokens")}


def shell(env: Mapping[str, str], argv: Sequence[str]) -> str:
    """A command in a form that a shell takes."""
    return " ".join([*(f"{key}={shlex.quote(value)}" for key, value in env.items()), shlex.join(argv)])
