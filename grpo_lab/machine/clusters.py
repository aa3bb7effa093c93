"""The hardware that a prediction is for: `hardware=h100-8x16`, or what this machine has."""

from __future__ import annotations

import re
from dataclasses import dataclass

from grpo_lab.config.errors import RequestError, nearest
from grpo_lab.machine.cards import Card, card_of, presets
from grpo_lab.machine.gpus import Gpu, Machine
from grpo_lab.machine.nodes import placeholders

_ASKED = re.compile(r"(?P<card>.+?)-(?P<gpus>\d+)(?:x(?P<nodes>\d+))?")
_ASSUMED = {"vllm": "0.31.0", "deepspeed": "0.18.0", "bitsandbytes": "0.48.0", "grpo-lab": "0"}
"""Installed on a machine that is only named: a plan for it must not depend on what this one lacks."""


@dataclass(frozen=True)
class Cluster:
    card: Card
    per_node: int
    nodes: int = 1
    machine: Machine | None = None
    """What was read; None where the hardware was only named."""

    @property
    def gpus(self) -> int:
        return self.per_node * self.nodes

    def as_machine(self) -> Machine:
        """What `make_plan` takes."""
        if self.machine is not None:
            return self.machine
        name = self.card.names[0] if self.card.names else self.card.name
        gpus = tuple(Gpu(str(number), name, self.card.memory / 2**30) for number in range(self.per_node))
        hosts = placeholders(self.nodes) if self.nodes > 1 else ()
        return Machine(gpus=gpus, cores=16 * self.per_node, versions=_ASSUMED, hosts=hosts)


def cluster(asked: str, machine: Machine, *, nodes: int = 1) -> Cluster:
    """`auto`: this machine's GPUs, or `nodes` like it. `h100-8`: eight in one machine; `h100-8x16`: sixteen of
    those.

    Raises:
        RequestError: for a card that is not known, or `auto` without GPUs.
    """
    if asked == "auto":
        if not machine.gpus:
            raise RequestError(f"hardware=auto: no GPU here; name some, for example hardware={next(iter(presets()))}-8")
        gpu = machine.gpus[0]
        card = card_of(gpu.name, gpu.memory_gib)
        if card is None:
            raise RequestError(f"hardware=auto: nothing is known of the {gpu.name}; known are {', '.join(presets())}")
        return Cluster(card, len(machine.gpus), nodes, machine)
    match = _ASKED.fullmatch(asked)
    if match is None or match["card"] not in presets():
        raise RequestError(f"hardware={asked}: {_way_out(asked, match)}")
    gpus, machines = int(match["gpus"]), int(match["nodes"] or nodes)
    if gpus < 1 or machines < 1:
        raise RequestError(f"hardware={asked}: at least one GPU in at least one machine")
    return Cluster(presets()[match["card"]], gpus, machines)


def _way_out(asked: str, match: re.Match[str] | None) -> str:
    """`a100-80` reads like 80 cards a100, and is one card without its number."""
    card, number = asked, "-1"
    if match and asked not in presets():
        card, number = match["card"], asked.removeprefix(match["card"])
    sizes = [f"'{name}{number}'" for name in presets() if name.startswith(f"{card}-") and card not in presets()]
    near = f"did you mean {' or '.join(sizes)}?" if sizes else nearest(card, presets(), ending=number)
    return f"a card, - and a number, x machines, such as h100-8 or h100-8x16; {near}"
