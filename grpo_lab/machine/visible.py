"""CUDA_VISIBLE_DEVICES as CUDA reads it (seen with the driver of CUDA 13.0).

Entries are indices, or UUIDs of cards (`GPU-...`) and MIG devices (`MIG-...`), abbreviated or not; the first one
decides which. An entry that is none of them ends the list. A card named twice makes `cuInit` fail.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from grpo_lab.config.errors import RequestError
from grpo_lab.machine.driver import Device

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
BY_BUS = "PCI_BUS_ID"
INDEX = re.compile(r"\s*\+?(\d+)")
"""Whatever follows the digits does not count, as with C's strtoul."""
UUID = re.compile(r"(GPU|MIG)-(?P<rest>\S+)\s*")
NOTHING = ("", "-1", "nodevfiles", "none", "void")
"""Usual ways to hide all GPUs."""

Named = tuple[str, Device]
"""A device with the id by which children are to find it."""


def environment(ids: Sequence[str]) -> dict[str, str]:
    """Variables that show a child these GPUs alone, in this order."""
    return {VISIBLE: ",".join(ids), **({ORDER: BY_BUS} if ids else {})}


def hides_all(named: str) -> bool:
    """Whether no driver needs to be asked to see that there is no GPU."""
    first = named.split(",")[0]
    return not (INDEX.match(first) or UUID.fullmatch(first))


def chosen(devices: Sequence[Device], named: str | None, order: str | None) -> tuple[list[Named], str]:
    """The devices that CUDA shows, and a note on entries that hide some. A card that is cut stands for all its MIG
    devices, of which CUDA itself would show one.

    Raises:
        RequestError: for one that cannot be used, is named twice, or of which only CUDA could say which it is.
    """
    picked, note = (list(devices), "") if named is None else _picked(devices, named, order)
    lost = any(device.error for device in devices)  # CUDA may not count it: then an index is another card's
    cut = [part for device in picked for part in device.slices or (device,)]
    for device in cut:
        if device.error:
            usable = ",".join(other.uuid for other in devices if not other.error)
            leave = f"leave it out, {VISIBLE}={usable}, or gpus=0" if usable else "gpus=0 runs without it"
            raise RequestError(f"GPU {device.index} cannot be used: {device.error}; {leave}")
    by_uuid = lost or (named is not None and UUID.fullmatch(named.split(",")[0]) is not None)
    return [(part.uuid if by_uuid or part.uuid.startswith("MIG-") else str(part.index), part) for part in cut], note


def _picked(devices: Sequence[Device], named: str, order: str | None) -> tuple[list[Device], str]:
    entries = named.split(",")
    by_index = INDEX.match(entries[0]) is not None
    kinds = sorted({device.name for device in devices if device.name})
    if by_index and len(kinds) > 1 and order != BY_BUS:
        raise RequestError(
            f"{VISIBLE}={named}: CUDA numbers cards of several kinds ({', '.join(kinds)}) by their speed;"
            f" set {ORDER}={BY_BUS}, or name them by UUID (nvidia-smi -L)"
        )
    picked: list[Device] = []
    for entry in entries:
        device = _by_index(devices, entry) if by_index else _by_uuid(devices, entry)
        if device is None:
            usual = entry.strip().lower() in NOTHING
            return picked, "" if usual else f"{VISIBLE}={named}: {entry} is no GPU here; it hides all that follows"
        if device in picked:
            raise RequestError(f"{VISIBLE}={named}: {entry} is there twice, and CUDA then shows no GPU; name each once")
        picked.append(device)
    return picked, ""


def _by_index(devices: Sequence[Device], entry: str) -> Device | None:
    match = INDEX.match(entry)
    return next((device for device in devices if match and device.index == int(match[1])), None)


def _by_uuid(devices: Sequence[Device], entry: str) -> Device | None:
    """None also for an abbreviation that several share."""
    if not (match := UUID.fullmatch(entry)):
        return None
    begins = f"{match[1]}-{match['rest']}".lower()
    every = [part for device in devices for part in (device, *device.slices)]
    fitting = [part for part in every if part.uuid.lower().startswith(begins)]
    return fitting[0] if len(fitting) == 1 else None
