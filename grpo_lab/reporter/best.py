"""Which configuration is best, and whether that may be said: what a table prints in bold."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_lab.reporter import paired
from grpo_lab.reporter.configurations import Configuration
from grpo_lab.store.measures import Measure

RUNS = 3
"""Runs of each configuration that a best one takes: two say next to nothing about how runs differ."""


def best(configurations: Sequence[Configuration], measure: Measure) -> list[Configuration]:
    """Of each workload the configuration that stands clear of all others, if there is one."""
    first = []
    for work in dict.fromkeys(rival.work for rival in configurations):
        rivals = [rival for rival in configurations if rival.work == work and measure.name in rival.estimates]
        first += [rival for rival in rivals if len(rivals) > 1 and _stands_clear(rival, rivals, measure)]
    return first


def _stands_clear(configuration: Configuration, rivals: Sequence[Configuration], measure: Measure) -> bool:
    return has_enough(rivals, measure) and all(
        _beats(configuration, other, measure) for other in rivals if other is not configuration
    )


def has_enough(rivals: Sequence[Configuration], measure: Measure) -> bool:
    """Whether each ran often enough for one of them to be called best."""
    return all(_runs(rival, measure) >= RUNS for rival in rivals)


def _runs(configuration: Configuration, measure: Measure) -> int:
    estimate = configuration.estimates[measure.name]
    return estimate.n or 0 if estimate.of == "runs" else 1


def _beats(configuration: Configuration, other: Configuration, measure: Measure) -> bool:
    """Its paired difference is above 0, where accuracies are of the same problems; else the intervals do not meet."""
    if measure.name == "accuracy_after" and (difference := paired.difference(configuration, other)):
        return difference.low is not None and difference.low > 0
    ours, theirs = configuration.estimates[measure.name], other.estimates[measure.name]
    if measure.better is None or None in (ours.low, ours.high, theirs.low, theirs.high):
        return False
    higher, lower = (ours, theirs) if measure.better == "higher" else (theirs, ours)
    return (higher.low or 0.0) > (lower.high or 0.0)
