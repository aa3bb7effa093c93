"""Intervals. No number of the harness stands without one; docs/intervals.md has the share of cases each one holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

Interval = tuple[float, float]
LEAST = 6
"""Measurements that a 95% interval of a median takes: all of five lie on one side of it in 1 of 16 cases."""
WITHIN_A_RUN = "An interval of a single run is within that run: runs of one configuration were up to 6% apart."
"""Stands under every table of timings."""
_Z975 = 1.959964
_T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5% quantile of Student's t at 1, 2, ... 30 degrees of freedom; the last one serves for more."""


class Timing(TypedDict):
    """Median of `n` measurements, its 95% interval (null below LEAST), the least and the largest (null for one)."""

    median: float
    ci95: Interval | None
    range: Interval | None
    n: int


class Proportion(TypedDict):
    """Share of `n` problems solved, 0..1, or a difference of shares, -1..1, with a 95% interval."""

    value: float
    ci95: Interval
    n: int


def timing(values: Sequence[float]) -> Timing | None:
    """Median with the interval between two order statistics, which holds for any distribution (Thompson 1936;
    Hollander & Wolfe 1999, section 3.6); None for an empty sequence. It takes the measurements for independent."""
    if not values:
        return None
    ordered = sorted(float(value) for value in values)
    n, cut = len(ordered), _cut(len(ordered))
    return {
        "median": float(np.median(ordered)),
        "ci95": (ordered[cut], ordered[-1 - cut]) if n >= LEAST else None,
        "range": (ordered[0], ordered[-1]) if n > 1 else None,
        "n": n,
    }


def spread(timing: Timing) -> tuple[str, Interval] | None:
    """What stands beside a median and what it is, `95%` or `range`; None for a single measurement."""
    interval = timing["ci95"] or timing.get("range")  # an older result has an interval of few and no range
    return None if interval is None else ("95%" if timing["n"] >= LEAST else "range", interval)


def _cut(n: int) -> int:
    """How many of n measurements may be left out at each end so that the rest spans the median in 95% of cases."""
    most, tail = 0.025 * 2**n, 1
    cut = 0
    while tail + math.comb(n, cut + 1) <= most:
        cut += 1
        tail += math.comb(n, cut)
    return cut


def proportion(right: Sequence[int]) -> Proportion:
    """Share of ones with its Wilson interval."""
    share = float(np.mean(right))
    return {"value": share, "ci95": wilson(share, len(right)), "n": len(right)}


def wilson(share: float, n: int) -> Interval:
    """Score interval of a share of n (Wilson 1927). It holds 95% on average over shares (Agresti & Coull 1998), less
    where one or two of n are expected to be right or wrong."""
    centre = (share + _Z975**2 / (2 * n)) / (1 + _Z975**2 / n)
    half = _Z975 * math.sqrt(share * (1 - share) / n + _Z975**2 / (4 * n * n)) / (1 + _Z975**2 / n)
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate, from `samples` completions of one problem, `right` of them right, of the chance that at least
    one of k is right (Chen et al. 2021, eq. 1): 1 - C(samples - right, k) / C(samples, k).

    Raises:
        ValueError: where there are fewer samples than k.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {right} right in {samples} samples")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def mean_share(shares: Sequence[float]) -> Proportion:
    """Mean over problems of a share of each, with an interval over problems: Wilson's where each share is 0 or 1,
    otherwise as for a paired difference, with one problem added that is never solved and one that always is."""
    if all(share in (0.0, 1.0) for share in shares):
        return proportion([int(share) for share in shares])
    return _adjusted(shares, least=0.0)


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Proportion:
    """Mean of after - before over the same problems, -1..1, with an interval over problems: that of the mean with one
    problem added that improves and one that worsens (Bonett & Price 2012, there for marks of 0 and 1).

    Raises:
        ValueError: if the two are not of one length.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} problems before, {len(after)} after: not the same problems")
    return _adjusted(np.subtract(after, before, dtype=float), least=-1.0)


def _adjusted(values: Sequence[float] | np.ndarray, *, least: float) -> Proportion:
    """Mean of values from `least` to 1. Its interval is the normal distribution's for the values with `least` and 1
    added to them, so that values which are all alike do not pass for certain."""
    together = np.array([*values, least, 1.0])
    value, centre = float(np.mean(values)), float(together.mean())
    half = _Z975 * float(together.std()) / math.sqrt(len(together))
    low, high = min(value, max(least, centre - half)), max(value, min(1.0, centre + half))
    return {"value": value, "ci95": (low, high), "n": len(values)}


def over_runs(
    values: Sequence[float], own: Sequence[Interval | None], answers: Sequence[int] | None = None
) -> Interval | None:
    """Interval of the mean of at least two runs that differ in their seed only: Student's t over the runs, and never
    narrower than `own`, the interval of each run, combined in quadrature, nor, of shares of `answers` each, than
    Wilson's of the answers pooled. None where no interval has a width."""
    n, mean = len(values), float(np.mean(values))
    between = _T975[min(n - 1, len(_T975)) - 1] * float(np.std(values, ddof=1)) / math.sqrt(n)
    spans = [span or (value, value) for value, span in zip(values, own, strict=True)]
    below = math.hypot(*(value - low for value, (low, _) in zip(values, spans, strict=True))) / n
    above = math.hypot(*(high - value for value, (_, high) in zip(values, spans, strict=True))) / n
    low, high = mean - max(between, below), mean + max(between, above)
    if answers is not None:
        pooled = wilson(float(np.average(values, weights=answers)), sum(answers))
        low, high = min(low, pooled[0]), max(high, pooled[1])
    return (low, high) if high > low else None
