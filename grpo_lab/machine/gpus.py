"""What this host has: GPUs, cores, installed versions. Read without torch, in a fraction of a second."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from grpo_lab.config import upstream
from grpo_lab.config.errors import RequestError
from grpo_lab.machine.nodes import Host

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "vllm",
    "accelerate",
    "peft",
    "deepspeed",
    "bitsandbytes",
    "kernels",
    "datasets",
    "hydra-core",
    "grpo-lab",
)

PEAK_BF16_FLOPS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bf16 operations a second of one card, from NVIDIA's data sheets (SXM where there are several)."""


@dataclass(frozen=True)
class Gpu:
    id: str
    """As CUDA_VISIBLE_DEVICES takes it."""
    name: str
    memory_gib: float

    @property
    def peak_flops(self) -> float | None:
        """Dense bf16 FLOP/s, None for a card that is not in the table."""
        return next((peak for name, peak in PEAK_BF16_FLOPS.items() if name in self.name.split()), None)


@dataclass(frozen=True)
class Machine:
    gpus: tuple[Gpu, ...] = ()
    cores: int = 1
    memory_gib: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    """Distribution -> version, only what is installed. vLLM's CPU build shows as `vllm` with `+cpu`."""
    hosts: tuple[Host, ...] = ()
    """Of a run over several machines: all of them, each like this one. None: not known yet, or only this one."""

    @property
    def vllm_on_cpu(self) -> bool:
        return self.versions.get("vllm", "").endswith("+cpu")


def read_machine() -> Machine:
    return Machine(
        gpus=_visible(_nvidia_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        versions={name: found for name in PACKAGES if (found := upstream.version(name)) is not None},
    )


def describe(machine: Machine) -> dict[str, object]:
    """For env.json: hardware and versions that a reader of the numbers needs."""
    return {
        "gpus": [gpu.name for gpu in machine.gpus],
        "gpu_memory_gib": machine.gpus[0].memory_gib if machine.gpus else None,
        "processor": _processor(),
        "cores": machine.cores,
        "host_ms": round(host_ms(), 2),
        "memory_gib": round(machine.memory_gib, 1),
        "python": platform.python_version(),
        "system": platform.platform(),
        **machine.versions,
    }


def host_ms() -> float:
    """The least of ten times for a fixed piece of Python: how fast the host does what GPUs wait for, which sets the
    pace of small models. 5.7 on an idle EPYC core."""
    entry = {"token": "token_id:12345", "logprob": -1.25}
    times = []
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(2000):
            json.loads(json.dumps(entry))
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def gpu_memory_gib(ids: Sequence[str]) -> float | None:
    """Memory in use on the fullest of these GPUs, by all processes on it; None where there is none."""
    used = [float(row[1]) / 1024 for row in _nvidia_smi("index,memory.used") if row[0] in ids]
    return round(max(used), 2) if used else None


def _nvidia_gpus() -> tuple[Gpu, ...]:
    return tuple(Gpu(row[0], row[1], round(float(row[2]) / 1024, 1)) for row in _nvidia_smi("index,name,memory.total"))


def _nvidia_smi(columns: str) -> list[list[str]]:
    """One row a GPU; none where there is no NVIDIA driver. Memory is in MiB."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", f"--query-gpu={columns}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return [line.split(", ") for line in answer.stdout.strip().splitlines()] if answer.returncode == 0 else []


def _visible(gpus: tuple[Gpu, ...], allowed: str | None) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order."""
    if allowed is None:
        return gpus
    by_id = {gpu.id: gpu for gpu in gpus}
    ids = [item.strip() for item in allowed.split(",") if item.strip()]
    unknown = [item for item in ids if item not in by_id]
    if unknown and gpus:
        raise RequestError(f"CUDA_VISIBLE_DEVICES={allowed}: this machine has the GPUs {', '.join(by_id)}")
    return tuple(by_id[item] for item in ids if item in by_id)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return platform.processor()
