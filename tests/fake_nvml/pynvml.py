"""Stands in for nvidia-ml-py: cards as FAKE_NVML, a JSON file, describes them. Shadows the real one from PYTHONPATH.

`{"init": null, error code or "hang", "cards": [{"name", "uuid", "memory": bytes or error code, "lost", "mig": [...]}]}`
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NOT_FOUND, NVML_ERROR_DRIVER_NOT_LOADED = 3, 6, 9
NVML_ERROR_LIBRARY_NOT_FOUND, NVML_ERROR_GPU_IS_LOST, NVML_ERROR_LIB_RM_VERSION_MISMATCH = 12, 15, 18
NVML_DEVICE_MIG_ENABLE = 1
nvmlMemory_v2 = 0x02000028
WORDS = {
    3: "Not Supported",
    6: "Not Found",
    9: "Driver Not Loaded",
    12: "NVML Shared Library Not Found",
    15: "GPU is lost",
    18: "Driver/library version mismatch",
}

MACHINE: dict[str, Any] = json.loads(Path(os.environ["FAKE_NVML"]).read_text())
CARDS: list[dict[str, Any]] = MACHINE["cards"]


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(WORDS[value])
        self.value = value


def nvmlInit() -> None:
    if MACHINE.get("init") == "hang":
        time.sleep(3600)
    if MACHINE.get("init"):
        raise NVMLError(MACHINE["init"])


def nvmlDeviceGetCount() -> int:
    return len(CARDS)


def nvmlDeviceGetHandleByIndex(index: int) -> dict[str, Any]:
    if CARDS[index].get("lost"):
        raise NVMLError(NVML_ERROR_GPU_IS_LOST)
    return CARDS[index]


def nvmlDeviceGetHandleByUUID(uuid: str) -> dict[str, Any]:
    every = [part for card in CARDS for part in (card, *card.get("mig", []))]
    return next(part for part in every if part["uuid"] == uuid)


def nvmlDeviceGetUUID(handle: dict[str, Any]) -> str:
    return str(handle["uuid"])


def nvmlDeviceGetName(handle: dict[str, Any]) -> str:
    return str(handle["name"])


def nvmlDeviceGetMemoryInfo(handle: dict[str, Any], version: int | None = None) -> SimpleNamespace:
    assert version == nvmlMemory_v2
    if handle["memory"] < 100:
        raise NVMLError(handle["memory"])
    return SimpleNamespace(total=handle["memory"], used=handle.get("used", 0))


def nvmlDeviceGetMigMode(handle: dict[str, Any]) -> list[int]:
    if "mig" not in handle:
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return [1, 1]


def nvmlDeviceGetMaxMigDeviceCount(handle: dict[str, Any]) -> int:
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle: dict[str, Any], index: int) -> dict[str, Any]:
    if index >= len(handle["mig"]):
        raise NVMLError(NVML_ERROR_NOT_FOUND)
    part: dict[str, Any] = handle["mig"][index]
    return part


def nvmlDeviceGetTotalEnergyConsumption(handle: dict[str, Any]) -> int:
    raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
