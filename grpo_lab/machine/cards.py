"""Cards and clusters: presets with their sources, `hardware=h100-8x16`, and what this machine has."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from grpo_lab.config.errors import RequestError, nearest
from grpo_lab.machine.gpus import Gpu, Machine
from grpo_lab.machine.nodes import placeholders

PRESETS = Path(__file__).resolve().parents[1] / "assets" / "cards.yaml"
_ASKED = re.compile(r"(?P<card>.+?)-(?P<gpus>\d+)(?:x(?P<nodes>\d+))?")
_ASSUMED = {"vllm": "0.31.0", "deepspeed": "0.18.0", "bitsandbytes": "0.48.0", "grpo-lab": "0"}
"""Installed on a machine that is only named: a plan for it must not depend on what this one lacks."""


@dataclass(frozen=True)
class Card:
    name: str
    memory: float
    """Bytes, as nvidia-smi reports them."""
    bandwidth: float
    """Of its memory, bytes a second."""
    flops: float
    """Dense bf16."""
    link: float
    """To the other cards of its machine, bytes a second in one direction."""
    network: float
    """To other machines, bytes a second in one direction, for each card."""
    source: str

    @property
    def large(self) -> bool:
        """vLLM's defaults are larger on such a card (EngineArgs.get_batch_defaults, vLLM 0.31)."""
        return self.memory >= 70 * 2**30 and not self.name.startswith("a100")


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
        gpus = tuple(Gpu(str(number), self.card.name, self.card.memory / 2**30) for number in range(self.per_node))
        hosts = placeholders(self.nodes) if self.nodes > 1 else ()
        return Machine(gpus=gpus, cores=16 * self.per_node, versions=_ASSUMED, hosts=hosts)


@cache
def presets() -> dict[str, Card]:
    return {name: _card(name, fields) for name, fields in _read().items()}


@cache
def _read() -> dict[str, dict[str, Any]]:
    loaded = OmegaConf.to_container(OmegaConf.load(PRESETS))
    assert isinstance(loaded, dict)
    return {str(name): fields for name, fields in loaded.items()}


def _card(name: str, fields: dict[str, Any]) -> Card:
    return Card(
        name=name,
        memory=fields["memory_gib"] * 2**30,
        bandwidth=fields["bandwidth"] * 1e9,
        flops=fields["tflops"] * 1e12,
        link=fields["link"] * 1e9,
        network=fields["network"] * 1e9,
        source=fields["source"],
    )


def cluster(asked: str, machine: Machine, *, nodes: int = 1) -> Cluster:
    """`auto`: this machine's GPUs, or `nodes` like it. `h100-8`: eight in one machine; `h100-8x16`: sixteen of
    those.

    Raises:
        RequestError: for a card that is not known, or `auto` without GPUs.
    """
    if asked == "auto":
        if not machine.gpus:
            raise RequestError(f"hardware=auto: no GPU here; name some, for example hardware={next(iter(presets()))}-8")
        card = card_of(machine.gpus[0])
        if card is None:
            raise RequestError(
                f"hardware=auto: nothing is known of the {machine.gpus[0].name}; known are {', '.join(presets())}"
            )
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
    sizes = [f"'{name}{number}'" for name in presets() if name.startswith(f"{card}-")]
    near = f"did you mean {' or '.join(sizes)}?" if sizes else nearest(card, presets(), ending=number)
    return f"a card, - and a number, x machines, such as h100-8 or h100-8x16; {near}"


def card_of(gpu: Gpu) -> Card | None:
    """The preset of a GPU by the name that its driver gives and, of two of one name, by its memory."""
    words = re.split(r"[ -]", gpu.name)
    found = [presets()[name] for name, fields in _read().items() if set(fields["names"]) & set(words)]
    near = [card for card in found if math.isclose(card.memory / 2**30, gpu.memory_gib, rel_tol=0.1)]
    return min(near, key=lambda card: abs(card.memory / 2**30 - gpu.memory_gib), default=None)
