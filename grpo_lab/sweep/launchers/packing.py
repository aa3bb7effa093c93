"""Which point starts next, and on what: a machine's GPUs and cores shared by points of different size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grpo_lab.sweep.launchers.base import Need

Sized = TypeVar("Sized")


@dataclass(frozen=True)
class Slots:
    """What a point holds while it runs."""

    gpus: tuple[str, ...]
    cores: tuple[int, ...]


class Pool:
    """The GPUs and cores of one machine that are free. A point holds what it needs, or waits.

    Every GPU has its share of the cores, which goes with it; only points without a GPU wait for cores.
    """

    def __init__(self, gpus: Sequence[str], cores: Sequence[int]) -> None:
        self._gpus, self._cores = list(gpus), sorted(cores)
        self._free_gpus, self._free_cores = list(self._gpus), list(self._cores)

    def take(self, need: Need) -> Slots | None:
        """The lowest free ones, so that neighbours stay neighbours; None if there are not enough."""
        if not need.gpus:
            return self._take_cores(need.cores)
        gpus = need.pinned or tuple(self._free_gpus[: need.gpus])
        if len(gpus) < need.gpus or not set(gpus) <= set(self._free_gpus):
            return None
        self._free_gpus = [gpu for gpu in self._free_gpus if gpu not in gpus]
        return Slots(gpus, tuple(sorted({core for gpu in gpus for core in self._cores_of(gpu)})))

    def _take_cores(self, count: int) -> Slots | None:
        if len(self._free_cores) < count:
            return None
        taken, self._free_cores = self._free_cores[:count], self._free_cores[count:]
        return Slots((), tuple(taken))

    def _cores_of(self, gpu: str) -> list[int]:
        """At least one; GPUs share cores where there are fewer of them."""
        at, cores, gpus = self._gpus.index(gpu), len(self._cores), len(self._gpus)
        first = at * cores // gpus
        return self._cores[first : max((at + 1) * cores // gpus, first + 1)]

    def give(self, slots: Slots) -> None:
        if not slots.gpus:
            self._free_cores = sorted([*self._free_cores, *slots.cores])
        self._free_gpus = [gpu for gpu in self._gpus if gpu in self._free_gpus or gpu in slots.gpus]


def largest_first(items: Iterable[tuple[Need, Sized]]) -> list[Sized]:
    """In the order in which to offer them: large ones while there is room, small ones fill what is left.

    Where durations are unknown this keeps the machine full to the end: small points that came first would leave the
    large ones to run one after the other with the rest idle. Equal needs keep their order.
    """
    return [item for _, item in sorted(items, key=lambda pair: (-pair[0].gpus, -pair[0].cores))]
