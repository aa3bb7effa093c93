"""Power and memory of GPUs over a stretch of time, from NVIDIA's driver (NVML)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_lab.machine import nvml as driver

MEMORY_EVERY_S = 0.2


@dataclass
class Meter:
    """GPU id -> measurement; None until the stretch has ended, and where the driver does not say."""

    energy_j: dict[str, float] | None = None
    seconds: float = 0.0
    peak_memory_gib: dict[str, float] | None = None
    """Most in use by all processes on the card, of what was seen every MEMORY_EVERY_S."""
    _peaks: dict[str, int] = field(default_factory=dict)

    def watch(self, nvml: Any, handles: dict[str, Any], ended: threading.Event) -> None:
        while True:
            for name, handle in handles.items():
                self._peaks[name] = max(driver.memory(nvml, handle).used, self._peaks.get(name, 0))
            if ended.wait(MEMORY_EVERY_S):
                return


@contextlib.contextmanager
def metered(ids: Sequence[str]) -> Iterator[Meter]:
    """Measures for the length of the block. `ids`: as CUDA_VISIBLE_DEVICES takes them, in the order of the PCI bus."""
    meter = Meter()
    nvml = driver.opened() if ids else None
    if nvml is None:
        yield meter
        return
    handles = {id: driver.handle_of(nvml, id) for id in ids}
    before, ended, started = _energies(nvml, handles), threading.Event(), time.perf_counter()
    watcher = threading.Thread(target=meter.watch, args=(nvml, handles, ended), daemon=True)
    watcher.start()
    try:
        yield meter
    finally:
        after = _energies(nvml, handles)
        meter.seconds = time.perf_counter() - started
        ended.set()
        watcher.join()
        meter.peak_memory_gib = {name: round(peak / 2**30, 2) for name, peak in meter._peaks.items()}
        if before and after:
            meter.energy_j = {name: after[name] - before[name] for name in handles}


def _energies(nvml: Any, handles: dict[str, Any]) -> dict[str, float] | None:
    """Joules since the driver was loaded; None where a card does not count them."""
    try:
        return {name: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000 for name, handle in handles.items()}
    except nvml.NVMLError:
        return None
