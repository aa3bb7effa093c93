"""Who gets which GPUs, and what that makes of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_lab.config import Config
from grpo_lab.errors import RequestError
from grpo_lab.machine import Machine
from grpo_lab.plan.parts import Batch


def allowed_gpus(config: Config, machine: Machine) -> tuple[str, ...]:
    have = tuple(gpu.id for gpu in machine.gpus)
    if config.gpus == "auto":
        return have
    if isinstance(config.gpus, int) and not isinstance(config.gpus, bool):
        if not 0 <= config.gpus <= len(have):
            raise RequestError(f"gpus={config.gpus}: this machine has {len(have)} GPUs")
        return have[: config.gpus]
    if isinstance(config.gpus, list):
        ids = tuple(str(item) for item in config.gpus)
        missing = [item for item in ids if item not in have]
        if missing or len(set(ids)) < len(ids):
            raise RequestError(
                f"gpus={list(ids)}: this machine has {', '.join(have) or 'no GPUs'}, each to be named once"
            )
        return ids
    raise RequestError(f"gpus={config.gpus}: 'auto', a number, or a list of ids such as [0,1]")


def roles(config: Config, gpus: tuple[str, ...]) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """(trainer processes, the trainer's GPUs, the server's GPUs)."""
    vllm, wanted = config.vllm, config.trainer_gpus
    engines = vllm.tp * vllm.dp
    if wanted is not None and wanted < 1:
        raise RequestError(f"trainer_gpus={wanted}: must be at least 1")
    if vllm.mode == "colocate":
        if wanted not in (None, engines):
            raise RequestError(
                f"trainer_gpus={wanted}: colocate has tp * dp = {engines} processes, one GPU each;"
                " change vllm.tp or vllm.dp"
            )
        if gpus and engines > len(gpus):
            raise RequestError(f"vllm.tp={vllm.tp} x vllm.dp={vllm.dp} need {engines} GPUs, there are {len(gpus)}")
        return engines, gpus[:engines], ()
    if not gpus:
        return wanted or 1, (), ()
    for_server = engines if vllm.mode == "server" and vllm.url is None else 0
    left = len(gpus) - for_server
    if left < 1 or (wanted or 1) > left:
        if not for_server:
            raise RequestError(f"trainer_gpus={wanted}: there are {len(gpus)} GPUs")
        need = f"{for_server} for the server (tp x dp), {wanted or 'at least 1'} for the trainer"
        raise RequestError(f"{need}: there are {len(gpus)} GPUs, and the two must not share one")
    trainer = gpus[: wanted or left]
    return len(trainer), trainer, gpus[len(trainer) : len(trainer) + for_server]


def batch_of(grpo: Mapping[str, Any], processes: int) -> Batch:
    completions, generations = int(grpo["generation_batch_size"]), int(grpo["num_generations"])
    limit = int(grpo["per_device_train_batch_size"])
    if generations < 2:
        raise RequestError(f"grpo.num_generations={generations}: GRPO compares completions of one prompt, at least 2")
    if completions < 1 or limit < 1:
        raise RequestError("grpo.generation_batch_size and grpo.per_device_train_batch_size must be at least 1")
    for what, by in ((f"grpo.num_generations={generations}", generations), (f"{processes} processes", processes)):
        if completions % by:
            nearby = " or ".join(str(size) for size in (completions // by * by, (completions // by + 1) * by) if size)
            fewer = max(count for count in range(1, processes + 1) if completions % count == 0)
            way_out = f", or trainer_gpus={fewer}" if by == processes else ""
            raise RequestError(
                f"grpo.generation_batch_size={completions} is not a multiple of {what}; next ones: {nearby}{way_out}"
            )
    each = completions // processes
    per_device = max(size for size in range(1, min(limit, each) + 1) if each % size == 0)
    return Batch(completions, completions // generations, generations, processes, per_device, each // per_device)
