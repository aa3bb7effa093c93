"""Configurations that answered the same held-out problems: the difference of their accuracies, problem by problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grpo_lab.reporter.configurations import Configuration
from grpo_lab.store import folder as store
from grpo_lab.store import stats
from grpo_lab.store.estimates import Estimate

Marks = Mapping[int, Sequence[int | None]]
"""Seed -> a mark for each problem: 1 right, 0 wrong, None where the gold answer cannot be read."""


def difference(first: Configuration, second: Configuration) -> Estimate | None:
    """Accuracy after training of the first less that of the second, over the seeds that both have, `n` problems; None
    where they did not answer the same problems.

    The interval is over problems, whose marks are averaged over seeds, and never narrower than Student's t over seeds.
    """
    ours, theirs = marks(first), marks(second)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds or _problems(first) != _problems(second):
        return None
    sides = [np.array([side[seed] for seed in seeds], dtype=float) for side in (theirs, ours)]
    if sides[0].shape != sides[1].shape:
        return None
    readable = ~np.isnan(sides[0]).any(0) & ~np.isnan(sides[1]).any(0)
    if not readable.any():
        return None
    sides = [side[:, readable] for side in sides]
    paired = stats.paired_difference(*(side.mean(0).tolist() for side in sides))
    spans = [paired["ci95"]]
    if len(seeds) > 1 and (between := stats.over_runs((sides[1] - sides[0]).mean(1).tolist(), [None] * len(seeds))):
        spans.append(between)
    low, high = max(-1.0, min(low for low, _ in spans)), min(1.0, max(high for _, high in spans))
    return Estimate(paired["value"], low, high, paired["n"], "problems")


def marks(configuration: Configuration) -> Marks:
    """Of the finished runs that left their marks, all of one length."""
    by_seed = {
        int(row["seed"]): marks
        for row, run in zip(configuration.finished, configuration.folders, strict=True)
        if row.get("seed") is not None and (marks := store.read_json(run.evaluation("after")))
    }
    lengths = {len(marks) for marks in by_seed.values()}
    return by_seed if len(lengths) == 1 else {}


def _problems(entry: Configuration) -> dict[str, Any]:
    """What decides which problems a run is evaluated on."""
    return {key: value for key, value in entry.asked.items() if key.startswith("data.") or key == "eval.problems"}
