"""The one table of cards (assets/cards.yaml), and which card a name stands for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

TABLE = Path(__file__).resolve().parents[1] / "assets" / "cards.yaml"
MAKER = ("", "nvidia", "tesla", "geforce")
"""Words of a name that old drivers, Slurm and Ray leave out."""


@dataclass(frozen=True)
class Card:
    name: str
    memory: float
    """Bytes, as NVML reports them."""
    bandwidth: float
    """Of its memory, bytes a second."""
    flops: float
    """Dense bf16; fp16 where the card has no bf16."""
    link: float
    """To the other cards of its machine, bytes a second in one direction."""
    network: float
    """To other machines, bytes a second in one direction, for each card."""
    source: str
    names: tuple[str, ...] = ()
    """As NVML reports them."""

    @property
    def large(self) -> bool:
        """vLLM's defaults are larger on such a card (EngineArgs.get_batch_defaults, vLLM 0.31)."""
        return self.memory >= 70 * 2**30 and not self.name.startswith("a100")


@cache
def presets() -> dict[str, Card]:
    loaded = OmegaConf.to_container(OmegaConf.load(TABLE))
    assert isinstance(loaded, dict)
    return {
        str(name): Card(
            name=str(name),
            memory=row["memory_gib"] * 2**30,
            bandwidth=row["bandwidth"] * 1e9,
            flops=row["tflops"] * 1e12,
            link=row["link"] * 1e9,
            network=row["network"] * 1e9,
            source=row["source"],
            names=tuple(row["names"]),
        )
        for name, row in loaded.items()
    }


def card_of(name: str, memory_gib: float | None) -> Card | None:
    """The card that NVML calls so; None where the table has none, or several. `memory_gib`: None or 0: not known."""
    cards = candidates(name, memory_gib)
    return cards[0] if len(cards) == 1 else None


def peak_flops(name: str, memory_gib: float | None) -> float | None:
    """Dense bf16 FLOP/s; None unless all cards that the name can stand for agree."""
    peaks = {card.flops for card in candidates(name, memory_gib)}
    return peaks.pop() if len(peaks) == 1 else None


def candidates(name: str, memory_gib: float | None) -> list[Card]:
    """Cards of the very name, else those whose names begin with it, as schedulers shorten them (`a100`). A slice of a
    card, or one with another memory, is no such card."""
    asked, cards = _words(name), presets().values()
    exact = [card for card in cards if asked in map(_words, card.names)]
    begun = [card for card in cards if asked and any(_words(full)[: len(asked)] == asked for full in card.names)]
    sized = [
        card for card in exact or begun if not memory_gib or math.isclose(card.memory / 2**30, memory_gib, rel_tol=0.1)
    ]
    return sized


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s_-]+", name.lower()) if word not in MAKER]
