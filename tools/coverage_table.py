"""`python -m tools.coverage_table > docs/intervals.md`: how often the intervals of grpo_lab.store.stats hold the truth.

Every case is drawn again and again from a distribution whose true value is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from grpo_lab.store import stats
from grpo_lab.store.stats import Interval

Draw = np.random.Generator
TRIALS = 10_000
STATED = 0.95


@dataclass(frozen=True)
class Case:
    """`sample` draws data and gives its interval, None where it has none, and the true value."""

    of: str
    data: str
    sample: Callable[[Draw], tuple[Interval | None, float]]
    stated: float = STATED

    def coverage(self, trials: int, seed: int = 0) -> float:
        """Share of `trials` whose interval holds the true value."""
        draw = np.random.default_rng(seed)
        return sum(_holds(*self.sample(draw)) for _ in range(trials)) / trials


def _holds(interval: Interval | None, truth: float) -> bool:
    return interval is not None and interval[0] - 1e-12 <= truth <= interval[1] + 1e-12


def cases() -> list[Case]:
    return [*_timings(), *_proportions(), *_mean_shares(), *_paired(), *_over_runs()]


TIMES: dict[str, tuple[Callable[[Draw, int], np.ndarray], float]] = {
    "normal": (lambda draw, n: draw.normal(2.0, 0.1, n), 2.0),
    "lognormal, sigma 1": (lambda draw, n: draw.lognormal(0.0, 1.0, n), 1.0),
    "exponential": (lambda draw, n: draw.exponential(1.0, n), math.log(2)),
}


def _timings() -> Iterator[Case]:
    for n, name in product((3, 5, 6, 10, 30, 100), TIMES):
        whole = n >= stats.LEAST
        of, stated = ("timing, ci95", STATED) if whole else ("timing, range", 1 - 2 * 0.5**n)
        yield Case(of, f"{n} times, {name}", partial(_timing, n, *TIMES[name], whole), stated)


def _timing(
    n: int, times: Callable[[Draw, int], np.ndarray], truth: float, whole: bool, draw: Draw
) -> tuple[Interval | None, float]:
    timing = stats.timing(times(draw, n).tolist())
    assert timing is not None
    return timing["ci95"] if whole else timing["range"], truth


def _proportions() -> Iterator[Case]:
    for n in (5, 10, 30, 100, 500):
        yield Case("proportion", f"{n} problems, any share", partial(_proportion, n))


def _proportion(n: int, draw: Draw) -> tuple[Interval, float]:
    share = draw.uniform()
    return stats.proportion((draw.random(n) < share).astype(int).tolist())["ci95"], share


def _mean_shares() -> Iterator[Case]:
    for n, (samples, a, b) in product((10, 30, 200), ((4, 1, 1), (16, 0.3, 0.7), (16, 20, 2))):
        data = f"{n} problems, {samples} samples each, chances Beta({a:g}, {b:g})"
        yield Case("mean_share", data, partial(_mean_share, n, samples, a, b))


def _mean_share(n: int, samples: int, a: float, b: float, draw: Draw) -> tuple[Interval, float]:
    shares = draw.binomial(samples, draw.beta(a, b, n)) / samples
    return stats.mean_share(shares.tolist())["ci95"], a / (a + b)


def _paired() -> Iterator[Case]:
    for n, (better, worse) in product((10, 50, 500), ((0.02, 0.02), (0.1, 0.05), (0.3, 0.1))):
        data = f"{n} problems, {better:.0%} become right, {worse:.0%} wrong"
        yield Case("paired_difference", data, partial(_paired_marks, n, better, worse))
    for n in (10, 50):
        yield Case("paired_difference", f"{n} problems, 4 samples each, chances change", partial(_paired_shares, n))


def _paired_marks(n: int, better: float, worse: float, draw: Draw) -> tuple[Interval, float]:
    change = draw.choice([1, -1, 0], n, p=[better, worse, 1 - better - worse])
    return stats.paired_difference((change < 0).tolist(), (change > 0).tolist())["ci95"], better - worse


def _paired_shares(n: int, draw: Draw) -> tuple[Interval, float]:
    """Chances of any size, a tenth more or less afterwards: 0 on average."""
    before = draw.uniform(0.1, 0.9, n)
    after = before + draw.uniform(-0.1, 0.1, n)
    return stats.paired_difference(*(draw.binomial(4, chance) / 4 for chance in (before, after)))["ci95"], 0.0


def _over_runs() -> Iterator[Case]:
    for runs in (2, 3, 5, 10):
        yield Case("over_runs", f"{runs} runs, times that differ by 3%", partial(_times_of_runs, runs))
    for runs, spread in product((2, 3, 5), (0.0, 0.02)):
        data = f"{runs} runs, 500 problems each, chance 0.65 +- {spread:g}"
        yield Case("over_runs", data, partial(_shares_of_runs, runs, spread))


def _times_of_runs(runs: int, draw: Draw) -> tuple[Interval | None, float]:
    return stats.over_runs(draw.normal(2.0, 0.06, runs).tolist(), [None] * runs), 2.0


def _shares_of_runs(runs: int, spread: float, draw: Draw) -> tuple[Interval | None, float]:
    shares = (draw.binomial(500, draw.normal(0.65, spread, runs)) / 500).tolist()
    return stats.over_runs(shares, [stats.wilson(share, 500) for share in shares], [500] * runs), 0.65


def wilson_coverage(n: int, p: float) -> float:
    """Summed, not simulated."""
    return math.fsum(
        math.comb(n, k) * p**k * (1 - p) ** (n - k)
        for k in range(n + 1)
        if (span := stats.wilson(k / n, n))[0] <= p <= span[1]
    )


def wilson_over_shares(n: int, points: int = 999) -> tuple[float, float]:
    """Mean and least coverage over shares from 0 to 1."""
    found = [wilson_coverage(n, place / (points + 1)) for place in range(1, points + 1)]
    return math.fsum(found) / points, min(found)


def page(trials: int = TRIALS) -> str:
    """docs/intervals.md."""
    rows = [f"| `{case.of}` | {case.data} | {case.stated:.1%} | {case.coverage(trials):.1%} |" for case in cases()]
    wilson = [f"| {n} | {mean:.1%} | {least:.1%} |" for n in (10, 30, 100) for mean, least in [wilson_over_shares(n)]]
    return PAGE.format(trials=f"{trials:,}", rows="\n".join(rows), wilson="\n".join(wilson))


PAGE = """\
<!-- Made by python -m tools.coverage_table; change grpo_lab/store/stats.py, not this page. -->

# Intervals

An interval of 95% should hold the true value in 95 of 100 cases. What each one is:

| number | interval |
|---|---|
| median of n steps or rounds of one run, n of 6 or more | two order statistics, exact (Thompson 1936) |
| the same, n below 6 | none of 95%: the range from the least to the largest, written "range of 3" |
| share of n problems | Wilson's score interval (1927) |
| mean over problems of pass@k | of the mean with one problem added that is never solved and one that always is |
| difference over the same problems | of the mean with one added that improves, one that worsens (Bonett & Price 2012) |
| mean over runs that differ in their seed | Student's t, never narrower than the runs' own intervals combined |

Each interval is over what its n counts, and over nothing else. That of one run's timing says how its steps differ, not
how runs do: runs of one configuration were up to 6% apart.

{trials} draws each; a share of 95% is then off by 0.4 points in 1 case of 20:

| `grpo_lab.store.stats` | data | stated | holds |
|---|---|---:|---:|
{rows}

Wilson's interval holds what it states on average over shares, and less where only one or two of n are expected to be
right (or wrong). Summed, not drawn, over 999 shares:

| problems | on average | at the worst share |
|---:|---:|---:|
{wilson}
"""


if __name__ == "__main__":
    print(page(), end="")
