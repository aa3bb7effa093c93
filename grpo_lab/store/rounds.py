"""One round: what a generator measured of it, and the row that metrics.jsonl keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np

from grpo_lab.machine.power import Meter
from grpo_lab.planner.loads import Load, Request
from grpo_lab.store.folder import Row


class BenchFailed(RuntimeError):
    """What came back is not what was asked for."""


@dataclass
class Arrivals:
    """When the tokens of the timed completions came, in seconds."""

    ttft_s: list[float] = field(default_factory=list)
    """From the request to the first token of a completion."""
    itl_s: list[float] = field(default_factory=list)
    """Between two tokens of a completion; where several came together, their gap shared equally."""

    def add(self, asked: float, came: Sequence[tuple[float, int]]) -> None:
        """Of one completion: moment and number of tokens of each message."""
        self.ttft_s.append(came[0][0] - asked)
        for (before, _), (now, count) in pairwise(came):
            self.itl_s += [(now - before) / count] * count


@dataclass
class Measured:
    seconds: float
    """From the first request to the end of the last."""
    tokens: int
    """Completion tokens, counted by the generator and found to be those asked for."""
    engines: dict[str, int]
    """Engine -> completion tokens, by its own count."""
    arrivals: Arrivals
    preemptions: int | None = None
    prefix_cache_hit_share: float | None = None
    """Of the prompt tokens that were looked up."""
    client_share: float | None = None
    """Processor seconds of the client, which has one core, over the round's."""


class Generator(Protocol):
    """Engines that are ready. Every measuring process has one and calls `measure` equally often."""

    tells: bool
    """Whether this is the process that writes."""
    kv_cache_tokens: int | None

    def measure(self, requests: Sequence[Request], load: Load) -> Measured:
        """Raises BenchFailed, and whatever the engines do."""


def check_engines(engines: dict[str, int], expected: int, tokens: int) -> None:
    """Raises BenchFailed where an engine got no work, or the engines did other work than ours."""
    working = sum(count > 0 for count in engines.values())
    if working != expected:
        raise BenchFailed(f"{working} of {expected} engines (vllm.dp) generated: {engines} tokens")
    if sum(engines.values()) != tokens:
        raise BenchFailed(f"the engines generated {sum(engines.values())} tokens, {tokens} were asked for: {engines}")


def row_of(load: Load, turn: int, warmup: int, measured: Measured, meter: Meter, devices: int) -> Row:
    """`turn`: the round's number within its load, from 0. `devices`: that generate."""
    speed, energy = measured.tokens / measured.seconds, meter.energy_j
    return {
        "load": load.name,
        "round": turn + 1,
        "warmup": turn < warmup,
        "round_s": measured.seconds,
        "completion_tokens": measured.tokens,
        "generated_tokens_per_s": speed,
        "generated_tokens_per_s_per_gpu": speed / devices,
        "requests_per_s": load.prompts / measured.seconds,
        **_spread("ttft_s", measured.arrivals.ttft_s),
        **_spread("itl_s", measured.arrivals.itl_s),
        "preemptions": measured.preemptions,
        "prefix_cache_hit_share": measured.prefix_cache_hit_share,
        "client_share": measured.client_share,
        "engines": measured.engines,
        "tokens_per_joule": measured.tokens / sum(energy.values()) if energy else None,
        "power_w": energy and {name: joules / meter.seconds for name, joules in energy.items()},
        "peak_memory_gib": meter.peak_memory_gib,
    }


def _spread(key: str, values: Sequence[float]) -> Row:
    """Median, 99th percentile and number."""
    middle, high = np.percentile(values, [50, 99]).tolist() if values else (None, None)
    return {key: middle, f"{key}_p99": high, f"{key}_n": len(values)}
