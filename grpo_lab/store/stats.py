"""Intervals. No number of the harness stands without one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

RESAMPLES = 2000


class Timing(TypedDict):
    """Median of `n` measurements and the percentile bootstrap's 95% interval of the median (null for n < 3)."""

    median: float
    ci95: tuple[float, float] | None
    n: int


class Proportion(TypedDict):
    """Share of `n` problems solved, 0..1, with a 95% interval."""

    value: float
    ci95: tuple[float, float]
    n: int


def timing(values: Sequence[float]) -> Timing | None:
    """Median and interval, None of nothing. Percentile bootstrap (Efron & Tibshirani 1993, chapter 13)."""
    if not values:
        return None
    data = np.asarray(values, dtype=float)
    interval = _bootstrap(data, np.median) if len(data) >= 3 else None
    return {"median": float(np.median(data)), "ci95": interval, "n": len(data)}


def proportion(right: Sequence[int]) -> Proportion:
    """Share of ones with Wilson's score interval (Wilson 1927), which holds near 0 and 1 too."""
    n, share, z = len(right), float(np.mean(right)), 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {"value": share, "ci95": (max(0.0, centre - half), min(1.0, centre + half)), "n": n}


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
    """Mean over problems of a share of each, with a bootstrap interval over problems; Wilson's where each share is 0
    or 1, because resampling problems that are all alike would find no uncertainty."""
    if all(share in (0.0, 1.0) for share in shares):
        return proportion([int(share) for share in shares])
    data = np.asarray(shares, dtype=float)
    return {"value": float(data.mean()), "ci95": _bootstrap(data, np.mean), "n": len(data)}


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Proportion:
    """Mean of after - before over the same problems, -1..1, with a bootstrap interval over problems.

    Raises:
        ValueError: if the two are not of one length.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} problems before, {len(after)} after: not the same problems")
    change = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    return {"value": float(change.mean()), "ci95": _bootstrap(change, np.mean), "n": len(change)}


def _bootstrap(data: np.ndarray, statistic: Callable[[np.ndarray], np.floating]) -> tuple[float, float]:
    """95% percentile interval from RESAMPLES resamples; the same data give the same interval."""
    draw = np.random.default_rng(0)
    resampled = [statistic(draw.choice(data, len(data))) for _ in range(RESAMPLES)]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)
