"""What this host has: GPUs, cores, installed versions. Read without torch, in a fraction of a second."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from grpo_lab.config import upstream
from grpo_lab.config.errors import RequestError
from grpo_lab.machine import cards, driver, surroundings, visible
from grpo_lab.machine.cores import usable
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


@dataclass(frozen=True)
class Gpu:
    id: str
    """As CUDA_VISIBLE_DEVICES takes it: an index in the order of the PCI bus, or the UUID where one was named."""
    name: str
    memory_gib: float
    uuid: str = ""

    @property
    def peak_flops(self) -> float | None:
        """Dense bf16 FLOP/s, None for a card that is not in the table."""
        return cards.peak_flops(self.name, self.memory_gib)


@dataclass(frozen=True)
class Machine:
    gpus: tuple[Gpu, ...] = ()
    cores: int = 1
    memory_gib: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    """Distribution -> version, only what is installed. vLLM's CPU build shows as `vllm` with `+cpu`."""
    hosts: tuple[Host, ...] = ()
    """Of a run over several machines: all of them, each like this one. None: not known yet, or only this one."""
    limited: bool = False
    """Whether `cores` are fewer than the system shows: a container's quota, which libraries do not look for."""
    notes: tuple[str, ...] = ()
    """What the user should know of how the machine was read."""

    @property
    def vllm_on_cpu(self) -> bool:
        return self.versions.get("vllm", "").endswith("+cpu")


def read_machine(asked: object = "auto") -> Machine:
    """`asked`: the request's `gpus`; for 0 the driver is not asked. Sets the process's surroundings right before.

    Raises:
        RequestError: if the driver does not answer, one of the GPUs cannot be used, or torchrun started this process.
    """
    notes = surroundings.settle()
    cores, seen = len(usable()), len(os.sched_getaffinity(0))
    gpus, note = ((), "") if asked == 0 else _gpus(os.environ.get(visible.VISIBLE))
    return Machine(
        gpus=gpus,
        cores=cores,
        limited=cores < seen,
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        versions={name: installed for name in PACKAGES if (installed := upstream.version(name)) is not None},
        notes=(*notes, *([note] if note else ())),
    )


def _gpus(named: str | None) -> tuple[tuple[Gpu, ...], str]:
    if named is not None and visible.hides_all(named):
        return (), ""
    named_devices, note = visible.chosen(driver.ask(), named, os.environ.get(visible.ORDER))
    return tuple(
        Gpu(id, device.name, round(device.total / 2**30, 1), device.uuid) for id, device in named_devices
    ), note


def gpu_memory_gib(ids: Sequence[str]) -> float | None:
    """Memory in use on the fullest of these GPUs, by all processes on it; None where there is none, or no answer."""
    try:
        devices = driver.ask() if ids else ()
    except RequestError:  # a run has ended by then, and is none the worse for it
        return None
    used = [
        part.used for card in devices for part in (card, *card.slices) if part.uuid in ids or str(card.index) in ids
    ]
    return round(max(used) / 2**30, 2) if used else None


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


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return platform.processor()
