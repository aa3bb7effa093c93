"""vLLM's own counts, from the text that its server answers at /metrics (Prometheus' exposition format)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, Mapping[str, str], float]
"""Name without a counter's `_total`, labels, value."""


@dataclass(frozen=True)
class Counts:
    """Since the start of the engines."""

    generated: Mapping[str, int]
    """Engine -> completion tokens."""
    preemptions: int
    """Requests put back for want of KV cache, to be computed again."""
    queried: int
    """Prompt tokens that were looked up in the prefix cache."""
    hits: int
    """Prompt tokens found there."""
    kv_cache_tokens: int
    """Room of all engines together."""

    def since(self, before: Counts) -> Counts:
        generated = {name: count - before.generated.get(name, 0) for name, count in self.generated.items()}
        return Counts(
            generated,
            self.preemptions - before.preemptions,
            self.queried - before.queried,
            self.hits - before.hits,
            self.kv_cache_tokens,
        )


def read_counts(text: str) -> Counts:
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return counts_of((sample.name.removesuffix("_total"), sample.labels, sample.value) for sample in samples)


def counts_of(samples: Iterable[Sample]) -> Counts:
    generated: dict[str, int] = {}
    sums = dict.fromkeys(("num_preemptions", "prefix_cache_queries", "prefix_cache_hits"), 0)
    room = 0
    for name, labels, value in samples:
        what, engine = name.removeprefix("vllm:"), labels.get("engine", "0")
        if what == "generation_tokens":
            generated[engine] = generated.get(engine, 0) + int(value)
        elif what in sums:
            sums[what] += int(value)
        elif what == "cache_config_info":
            room = _room(labels)  # a server adds up the blocks of its engines, and says the sum for each
    return Counts(
        generated,
        preemptions=sums["num_preemptions"],
        queried=sums["prefix_cache_queries"],
        hits=sums["prefix_cache_hits"],
        kv_cache_tokens=room,
    )


def _room(labels: Mapping[str, str]) -> int:
    """Tokens of the KV cache; 0 where vLLM does not say."""
    sizes = [labels.get("num_gpu_blocks", ""), labels.get("block_size", "")]
    return int(sizes[0]) * int(sizes[1]) if all(size.isdigit() for size in sizes) else 0
