"""What NVIDIA's driver says of its cards, through NVML. As a program it prints the rows of `cards` as JSON.

Only the standard library and nvidia-ml-py, so that the program starts in no time.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def opened() -> Any:
    """NVML ready for use; None on a machine without NVIDIA's driver. Raises NVMLError if the driver does not work."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):
            return None
        raise
    return pynvml


def handle_of(nvml: Any, id: str) -> Any:
    """`id`: an index in the order of the PCI bus, or a UUID (`GPU-...`, `MIG-...`)."""
    return nvml.nvmlDeviceGetHandleByIndex(int(id)) if id.isdigit() else nvml.nvmlDeviceGetHandleByUUID(id)


def memory(nvml: Any, handle: Any) -> Any:
    """Bytes: `total`, and `used` by processes, without what the driver reserves (as nvidia-smi counts)."""
    return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)


def cards(nvml: Any) -> list[dict[str, Any]]:
    """One row a card in the order of the PCI bus: `index` and `error`, or `index, uuid, name, total, used, slices`.

    `slices`: the same of its MIG devices, if it is cut into them.
    """
    rows = []
    for index in range(nvml.nvmlDeviceGetCount()):
        row: dict[str, Any] = {"index": index}
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            row |= {**_named(nvml, handle), "slices": _slices(nvml, handle)}
        except nvml.NVMLError as error:
            row["error"] = str(error)
        rows.append(row)
    return rows


def _named(nvml: Any, handle: Any) -> dict[str, Any]:
    row = {"uuid": nvml.nvmlDeviceGetUUID(handle), "name": nvml.nvmlDeviceGetName(handle)}
    try:
        sizes = memory(nvml, handle)
    except nvml.NVMLError as error:
        return {**row, "error": f"its memory cannot be read ({error})"}
    return {**row, "total": sizes.total, "used": sizes.used}


def _slices(nvml: Any, handle: Any) -> list[dict[str, Any]]:
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return []
    except nvml.NVMLError:  # this kind of card cannot be cut
        return []
    devices = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            devices.append(_named(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)))
        except nvml.NVMLError:  # there could be so many, and are fewer
            continue
    return devices or [{"error": "MIG is on, and it has no MIG device"}]


def main() -> None:
    import pynvml

    try:
        nvml = opened()
        rows = [] if nvml is None else cards(nvml)
    except pynvml.NVMLError as error:
        sys.exit(str(error))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
