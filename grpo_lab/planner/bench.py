"""Plan of a bench: the engines, their GPUs, how they are started, and the process that measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_lab.config import model as policy
from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config, DistributedConfig
from grpo_lab.machine.gpus import Machine
from grpo_lab.machine.nodes import LOCAL
from grpo_lab.planner.checks.abilities import check_vllm
from grpo_lab.planner.checks.request import check_request
from grpo_lab.planner.checks.secrets import check_secrets
from grpo_lab.planner.checks.shapes import check_shape, unchecked
from grpo_lab.planner.checks.upstream import check_upstream
from grpo_lab.planner.commands import engine_options, prepare_of, server_of, trainer_of, weight_transfer
from grpo_lab.planner.layout import allowed_gpus
from grpo_lab.planner.loads import Load, loads_of
from grpo_lab.planner.modes import Mode, memory_share, mode
from grpo_lab.planner.parts import Command, Ports, Roles
from grpo_lab.server.command import ServerPlan

MODULE = "grpo_lab.worker.bench"
BATCHED_TOKENS = 4096
"""TRL's max_num_batched_tokens for a colocated engine."""


@dataclass(frozen=True)
class BenchPlan:
    """Plan of a bench, with the parts that a training run's plan has as well under the same names."""

    mode: str
    trainer_gpus: tuple[str, ...]
    """Ids, of engines in the measuring processes."""
    server_gpus: tuple[str, ...]
    tp: int
    dp: int
    loads: tuple[Load, ...]
    model_path: str
    dtype: str
    """Type of transformers' weights."""
    server: ServerPlan | None
    url: str | None
    """Address of the server; None where the measuring processes generate themselves."""
    trainer: tuple[Command, ...]
    """Command that measures: a client of the server, or the processes that generate."""
    engine: Mapping[str, Any]
    """Arguments of a colocated vLLM."""
    weight_transfer: str | None
    prepare: Command | None
    notes: tuple[str, ...] = ()
    engines: tuple[Command, ...] = ()
    nodes: int = 1

    @property
    def generation(self) -> Mode:
        return mode(self.mode)

    @property
    def used(self) -> tuple[str, ...]:
        """Ids of the GPUs."""
        return self.trainer_gpus or self.server_gpus

    @property
    def gpus(self) -> int:
        return len(self.used)

    @property
    def gpus_per_node(self) -> int:
        return self.gpus

    @property
    def generating_devices(self) -> int:
        """GPUs that generate, on a machine without any: processes."""
        return self.tp * self.dp

    @property
    def devices(self) -> int:
        return self.generating_devices

    def commands(self) -> Iterator[tuple[str, Command | ServerPlan]]:
        """Commands in the order in which they start, each with its role."""
        if self.prepare is not None:
            yield "prepare", self.prepare
        if self.server is not None:
            yield "server", self.server
        for command in self.trainer:
            yield self.generation.bench_role, command


def make_plan(config: Config, machine: Machine, *, folder: Path, ports: Ports) -> BenchPlan:
    """Raises RequestError for what cannot work."""
    check_request(config)
    loads = loads_of(config.bench)
    check_secrets(config)
    config = _generating(config)
    check_upstream(config, machine)
    gpus = allowed_gpus(config, machine)
    check_vllm(config, machine, on_gpu=bool(gpus))
    shape = policy.shape(config.model)
    check_shape(config, shape, on_gpu=bool(gpus))
    _check_lengths(config, loads, shape.context if shape else None)
    _check_engines(config, loads)
    layout = _roles(config, gpus)
    model_path = _model_path(config)
    server = server_of(config, machine, folder, model_path, layout, ports)
    return BenchPlan(
        mode=config.vllm.mode,
        trainer_gpus=layout.trainer_gpus,
        server_gpus=layout.server_gpus,
        tp=config.vllm.tp,
        dp=config.vllm.dp,
        loads=loads,
        model_path=model_path,
        dtype="bfloat16" if gpus else config.model.dtype,
        server=server,
        url=server.url if server else config.vllm.url,
        trainer=trainer_of(config, machine, folder, layout, ports, module=MODULE),
        engine=_engine(config, loads, on_gpu=bool(gpus)) if mode(config.vllm.mode).colocated else {},
        weight_transfer=weight_transfer(config, on_gpu=bool(gpus)),
        prepare=prepare_of(config, model_path, folder),
        notes=(*machine.notes, *unchecked(config, shape)),
    )


def _generating(config: Config) -> Config:
    """Drop the sections that only training uses, whose checks would name keys that a bench does not read. vLLM makes
    random weights where it needs them: on disk, a 32B model's would be 65 GB to write and to read."""
    if config.nodes > 1:
        raise RequestError(f"nodes={config.nodes}: a bench runs on one machine; nodes=1")
    if config.vllm.sleep:
        raise RequestError("vllm.sleep=true: a bench has no trainer to make room for; vllm.sleep=false")
    if config.vllm.engine.get("disable_log_stats"):
        raise RequestError("vllm.engine.disable_log_stats=true: a bench needs vLLM's own counts; leave it out")
    random = config.model.weights == "random" and mode(config.vllm.mode).engines
    engine = {"load_format": "dummy", **config.vllm.engine} if random else config.vllm.engine
    return dataclasses.replace(
        config,
        vllm=dataclasses.replace(config.vllm, engine=engine),
        grpo={"max_completion_length": 1},
        data={},
        distributed=DistributedConfig(),
        algorithm=type(config.algorithm)(),
        peft=type(config.peft)(),
        trainer_gpus=None,
    )


def _model_path(config: Config) -> str:
    if config.model.weights == "random" and config.vllm.engine.get("load_format") == "dummy":
        return str(policy.random_folder(config.model, weights=False))
    return policy.location(config.model)


def _check_lengths(config: Config, loads: tuple[Load, ...], context: int | None) -> None:
    asked = config.vllm.max_model_len
    limit, what = (asked, "vllm.max_model_len") if asked else (context, f"the context of {config.model.name}")
    for load in loads:
        need = load.longest_prompt + load.longest_completion
        if limit and need > limit:
            lengths = f"bench.prompt_len and bench.completion_len of load {load.name}"
            raise RequestError(f"{lengths}: {need} tokens in all, and {what} is {limit}")


def _check_engines(config: Config, loads: tuple[Load, ...]) -> None:
    """Refuse engines without work: whole prompts where each process asks its own engine, completions of a server."""
    served = mode(config.vllm.mode).served
    for load in loads:
        work = load.in_flight * (load.num_generations if served else 1)
        if work < config.vllm.dp:
            what = "completions" if served else "requests"
            raise RequestError(
                f"vllm.dp={config.vllm.dp}: load {load.name} has only {work} {what} in flight, fewer than engines"
            )


def _roles(config: Config, gpus: tuple[str, ...]) -> Roles:
    """The first tp * dp GPUs; transformers take one."""
    vllm, engines = config.vllm, config.vllm.tp * config.vllm.dp
    if vllm.url is not None:
        return Roles(1, (LOCAL,), ())
    if gpus and engines > len(gpus):
        raise RequestError(f"vllm.tp={vllm.tp} x vllm.dp={vllm.dp} need {engines} GPUs, there are {len(gpus)}")
    if mode(vllm.mode).served:
        return Roles(1, (LOCAL,), (), (LOCAL,), gpus[:engines])
    return Roles(engines, (LOCAL,), gpus[:engines])


def _engine(config: Config, loads: tuple[Load, ...], *, on_gpu: bool) -> dict[str, Any]:
    """As TRL's trainer builds a colocated engine (trl/generation/vllm_generation.py), which makes room for all
    completions of its share at once; with statistics."""
    most = max(-(-load.in_flight // config.vllm.dp) * load.num_generations for load in loads)
    return {
        "tensor_parallel_size": config.vllm.tp,
        "gpu_memory_utilization": memory_share(config),
        "max_model_len": config.vllm.max_model_len,
        "max_num_seqs": min(most, BATCHED_TOKENS),  # vLLM refuses more
        "max_num_batched_tokens": BATCHED_TOKENS,
        "logprobs_mode": "processed_logprobs",
        "distributed_executor_backend": "external_launcher",
        "disable_log_stats": False,
        **engine_options(config, on_gpu=on_gpu),
    }
